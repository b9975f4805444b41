"""Causal language models: token windows in, a prediction after every token, judged by perplexity."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from quept.config import Recipe
from quept.data import token_stream, token_windows
from quept.errors import InvalidInput
from quept.evaluation.judges import DataOptions, PerplexityJudge
from quept.models.checkpoint import open_tokenizer
from quept.models.task import Choice, Note, Task, check_count

TOKENS_PER_BATCH = 2048
DEFAULT_WINDOW = 2048  # tokens, for a model that was not calibrated


class TextGeneration(Task):
    """Samples are token windows, `(samples, tokens)`."""

    name = "text-generation"
    verb = "generates text"
    model_class = AutoModelForCausalLM
    default_recipe = "best"
    samples_name = "token windows"
    search_samples = 16
    metric = PerplexityJudge.metric
    per_token = True
    keeps_keys_values = True
    foreign_options = ("max_images",)

    def open_processor(self, source: str | Path, config: Any) -> Any:
        """Return the tokenizer."""
        return open_tokenizer(source)

    def save_processor(self, processor: Any, directory: Path) -> None:
        """Write the tokenizer's files."""
        processor.save_pretrained(directory)

    def fit(
        self, recipe: Recipe, config: Any, data: Any, samples: int | None, sequence_length: int | None, note: Note
    ) -> Recipe:
        """Shorten a recipe's windows to the model's limit; a caller's windows above it are an error."""
        if isinstance(data, Tensor):
            samples, sequence_length = _shape(data)
        limit = getattr(config, "max_position_embeddings", None) or recipe.data.sequence_length
        for option, value in (("samples", samples), ("sequence_length", sequence_length)):
            check_count(option, value)
        if sequence_length is not None and sequence_length > limit:
            raise InvalidInput(
                f"The sequence length {sequence_length} is above what the model was made for, {limit} "
                "(max_position_embeddings); choose that or less."
            )
        if sequence_length is None and recipe.data.sequence_length > limit:
            note(
                f"Sequences are {limit} tokens long instead of the recipe's {recipe.data.sequence_length}: the model "
                "was made for no more."
            )
        length = sequence_length if sequence_length is not None else min(recipe.data.sequence_length, limit)
        changes = {"samples": samples if samples is not None else recipe.data.samples, "sequence_length": length}
        return recipe.updated(data=recipe.data.updated(**changes))

    def draw(self, data: str | Path | Tensor, processor: Any, config: Any, recipe: Recipe, choice: Choice) -> Tensor:
        """Return windows, checked against the vocabulary; text that cannot be read is always an error."""
        if isinstance(data, Tensor):
            windows = data.to("cpu", torch.int64)
        elif not isinstance(data, str | Path):
            raise InvalidInput(
                f"data is a {type(data).__name__}; give a text file, a data set's name, or token windows."
            )
        elif not callable(processor):
            raise InvalidInput("Text cannot be read without a tokenizer; pass tokenizer=, or token windows as data.")
        else:
            windows = token_windows(
                data,
                processor,
                samples=recipe.data.samples,
                spare=choice.spare,
                sequence_length=recipe.data.sequence_length,
                seed=choice.seed,
                note=choice.note,
            )
        if int(windows.max()) >= config.vocab_size or int(windows.min()) < 0:
            raise InvalidInput(
                f"The token ids go from {int(windows.min())} to {int(windows.max())}, but the model's vocabulary "
                f"has {config.vocab_size}; use the model's own tokenizer."
            )
        return windows

    def arguments(self, samples: Tensor) -> dict[str, Any]:
        """Return the arguments for token ids, without a key-value cache."""
        return {"input_ids": samples, "use_cache": False}

    def tokens_per_sample(self, config: Any, samples: Tensor) -> int:
        """Return the length of a window."""
        return samples.shape[1]

    def classes(self, config: Any) -> int:
        """Return the size of the vocabulary."""
        return int(config.vocab_size)

    def predictions(self, samples: Tensor) -> int:
        """Return the number of tokens."""
        return samples.numel()

    def batch_size(self, samples: Tensor) -> int:
        """Return the windows that hold about 2048 tokens."""
        return max(1, TOKENS_PER_BATCH // samples.shape[1])

    def describe_amount(self, recipe: Recipe) -> str:
        """Return samples by tokens."""
        return f"{recipe.data.samples} x {recipe.data.sequence_length} tokens"

    def judge(
        self, model: Any, processor: Any, data: str | Path, options: DataOptions, *, note: Note = lambda text: None
    ) -> PerplexityJudge:
        """Open a text. Windows are by default as long as in the calibration, else 2048 tokens or the model's limit."""
        tokens = token_stream(data, processor, max_tokens=options.max_tokens)
        length = _window(model) if options.sequence_length is None else options.sequence_length
        return PerplexityJudge(tokens, length, options.stride)


TEXT_GENERATION = TextGeneration()


def _window(model: Any) -> int:
    """Return the window of a model's calibration, or of a model that was not calibrated the default, in tokens."""
    manifest = getattr(model, "quept_manifest", None)
    if manifest is not None:
        return int(manifest.recipe.data.sequence_length)
    return min(DEFAULT_WINDOW, getattr(model.config, "max_position_embeddings", None) or DEFAULT_WINDOW)


def _shape(windows: Tensor) -> tuple[int, int]:
    """Return the samples and tokens of token windows; raises `InvalidInput` for another kind of tensor."""
    integers = windows.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if windows.dim() != 2 or not integers or not windows.numel():
        raise InvalidInput(
            f"data is a tensor of shape {tuple(windows.shape)} and dtype {windows.dtype}; token windows are "
            "integers of shape (samples, tokens)."
        )
    return windows.shape[0], windows.shape[1]
