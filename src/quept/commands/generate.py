"""`quept.generate`: continue a text."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TextStreamer

from quept.commands.opening import manifest_of, open_processor, task_of
from quept.errors import InvalidInput
from quept.evaluation.finite import check_finite
from quept.generation import KeyValueCache, cache_arguments
from quept.models.checkpoint import quiet as quiet_transformers
from quept.precision import PrecisionLike, key_values, set_precision
from quept.storage import load


@dataclass(frozen=True)
class CacheUse:
    """The memory of a quantized key-value cache after a generation, and of the same in bfloat16."""

    tokens: int
    bytes: int
    bfloat16_bytes: int


@dataclass(frozen=True)
class Generation:
    """A prompt and its continuation: `text` and the ids of its `tokens`, the prompt included."""

    prompt: str
    text: str
    tokens: tuple[int, ...]
    cache: CacheUse | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary for `json.dump`."""
        found = {**asdict(self), "tokens": list(self.tokens)}
        return found if self.cache else {name: value for name, value in found.items() if name != "cache"}


def generate(
    model: Any,
    prompt: str,
    precision: PrecisionLike = None,
    *,
    tokenizer: Any = None,
    kv_recent: int = 0,
    max_new_tokens: int = 100,
    temperature: float = 0.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """Continue a text with a language model that `quept.load` loaded, or with the artifact at a path.

    Args:
        model: the model, or the directory of its artifact.
        prompt: text to go on from.
        precision: what to run at from now on, as for `set_precision`; None leaves it as it is.
        tokenizer: the model's; None opens the artifact's.
        kv_recent: the latest tokens whose keys and values stay in full precision, where these are quantized.
        max_new_tokens: tokens to add at most.
        temperature: 0 is greedy; higher is more varied.
        seed: of the sampling.
        on_text: told each piece of text as soon as it is there, the prompt first.

    Raises `InvalidInput` for a model that generates no text, and for a prompt that is empty or too long.
    """
    _check(prompt, max_new_tokens, temperature)
    given = model
    if isinstance(given, str | Path):
        model = load(given, device="auto")
    if tokenizer is None:
        tokenizer = _open_tokenizer(model, given)
    if precision is not None:
        set_precision(model, precision)
    inputs = _encoded(model, tokenizer, prompt, max_new_tokens)
    packed = any(each.bits is not None for each in key_values(model).values())
    cache = KeyValueCache(model, kv_recent) if packed else None
    if cache is not None:
        inputs.update(cache_arguments(cache))
    torch.manual_seed(seed)
    streamer = None if on_text is None else _Streamer(tokenizer, on_text)
    settings = _settings(model, max_new_tokens, temperature)
    with torch.inference_mode(), quiet_transformers():
        finite = LogitsProcessorList([_Finite(model, inputs)])
        tokens = model.generate(**inputs, generation_config=settings, streamer=streamer, logits_processor=finite)[0]
    use = None if cache is None else CacheUse(cache.get_seq_length(), cache.bytes(), cache.bytes_at(torch.bfloat16))
    return Generation(prompt, tokenizer.decode(tokens, skip_special_tokens=True), tuple(tokens.tolist()), use)


def open_generator(
    directory: str | Path,
    precision: PrecisionLike = None,
    *,
    device: str | torch.device = "auto",
    memory_budget: int | None = None,
) -> tuple[Any, Any]:
    """Return an artifact's language model at a precision, and its tokenizer; see `quept.load`.

    Raises `InvalidInput` for a model that generates no text.
    """
    model = load(directory, precision, device=device, memory_budget=memory_budget)
    return model, _open_tokenizer(model, directory)


def _open_tokenizer(model: Any, given: Any) -> Any:
    """Return the tokenizer of a model by `quept.load`; messages name its directory as it was `given`.

    Raises `InvalidInput` for a model that generates no text.
    """
    manifest_of(model)
    if not (task := task_of(model)).keeps_keys_values:
        directory = given if isinstance(given, str | Path) else model.quept_directory
        raise InvalidInput(
            f"{directory} holds a {model.config.model_type} model, which {task.verb} and generates no text; see "
            "quept evaluate."
        )
    return open_processor(model)


def _check(prompt: str, max_new_tokens: int, temperature: float) -> None:
    """Raise `InvalidInput` for arguments that no model can take."""
    if not isinstance(prompt, str):
        raise InvalidInput(f"The prompt is a {type(prompt).__name__}; give some text to go on from.")
    if max_new_tokens < 1:
        raise InvalidInput(f"max_new_tokens is {max_new_tokens}, but must be 1 or more.")
    if not temperature >= 0:
        raise InvalidInput(f"The temperature is {temperature}, but must be 0 (greedy) or more.")


def _encoded(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> Any:
    """Return the model's inputs for a prompt that leaves room for the new tokens."""
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    if not inputs["input_ids"].numel():
        raise InvalidInput("The prompt is empty; give some text to go on from.")
    limit = getattr(model.config, "max_position_embeddings", None)
    length = inputs["input_ids"].shape[1]
    if limit is not None and length + max_new_tokens > limit:
        raise InvalidInput(
            f"The prompt has {length} tokens; with {max_new_tokens} new ones that is more than the model's "
            f"{limit}. Shorten the prompt or lower --max-new-tokens."
        )
    return inputs


def _settings(model: Any, max_new_tokens: int, temperature: float) -> GenerationConfig:
    """Return the checkpoint's settings of generation, end tokens and all, with what the caller asks for."""
    settings = copy.deepcopy(model.generation_config)
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    settings.update(
        max_new_tokens=max_new_tokens,
        max_length=None,
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_p=settings.top_p if temperature > 0 else None,
        top_k=settings.top_k if temperature > 0 else None,
        pad_token_id=settings.pad_token_id if settings.pad_token_id is not None else ends[0],
    )
    return settings


class _Finite(LogitsProcessor):  # type: ignore[misc]
    """Raises `InvalidInput` for predictions that are NaN, from which the first token would always be chosen."""

    def __init__(self, model: Any, inputs: Any) -> None:
        self.model, self.ids = model, inputs["input_ids"]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.amax(-1)  # -inf is what other processors give to tokens that are not to be chosen
        check_finite(self.model, best, lambda: self.model(input_ids=self.ids, use_cache=False))
        return scores


class _Streamer(TextStreamer):  # type: ignore[misc]
    """Hands each piece of finished text to a function."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.on_text(text + "\n" if stream_end else text)
