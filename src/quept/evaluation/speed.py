"""How fast a causal language model runs at a width: prompts, single tokens, and changing the width."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quept.errors import InvalidInput
from quept.generation import cache_arguments, cache_of
from quept.precision import Parts, Precision, make_resident, set_precision

SWITCHES = 5  # back and forth, of which the median counts


@dataclass(frozen=True)
class Speed:
    """What a model does at one width.

    Attributes:
        precision: the width, as it is written.
        prefill: tokens of a prompt per second.
        decode: tokens per second, one after another, behind that prompt.
        weight_bytes: what is read of the model for each token, see `read_per_token`.
        memory_bytes: what the model holds at this width: the same, and an embedding that is no head.
        derive_seconds: from a switch to this width until its weights stand ready, when none was resident.
        switch_seconds: the same when all were.
    """

    precision: str
    prefill: float
    decode: float
    weight_bytes: int
    memory_bytes: int
    derive_seconds: float
    switch_seconds: float

    @property
    def bytes_per_second(self) -> float:
        """Bytes of weights that pass per second while single tokens are decoded."""
        return self.weight_bytes * self.decode


def measure_speed(
    model: Any,
    precision: Precision,
    *,
    prompt: int = 128,
    tokens: int = 32,
    repeats: int = 3,
    on_step: Callable[[], None] = lambda: None,
) -> Speed:
    """Time a loaded model at one width, on random tokens; it stays at that width.

    Args:
        model: what `quept.load` returned, for text generation.
        precision: as for `set_precision`.
        prompt: tokens of the prompt.
        tokens: how many are decoded behind it.
        repeats: of the prompt; the median counts, as it does of the decoded tokens.
        on_step: called after each prompt, and after each decoded token.

    Raises `InvalidInput` where prompt and tokens exceed what the model can hold.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and prompt + tokens > limit:
        raise InvalidInput(
            f"A prompt of {prompt} tokens with {tokens} behind it is more than the model's {limit}; give fewer."
        )
    set_precision(model, None)
    for layer in Parts.of(model).linears.values():
        layer.forget_derived()
    derive_seconds, _ = _timed(partial(_switch, model, precision))
    switches = []
    for _ in range(SWITCHES):
        set_precision(model, None)
        switches.append(_timed(partial(_switch, model, precision))[0])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, prompt + tokens), generator=generator).to(model.device)
    prompts, singles = [], []
    with torch.inference_mode():
        for _ in range(repeats):
            seconds, cache = _timed(partial(_forward, model, ids[:, :prompt], None))
            prompts.append(seconds)
            on_step()
        for place in range(prompt, prompt + tokens):
            seconds, cache = _timed(partial(_forward, model, ids[:, place : place + 1], cache))
            singles.append(seconds)
            on_step()
    return Speed(
        precision="full" if precision is None else str(precision),
        prefill=prompt / statistics.median(prompts),
        decode=1 / statistics.median(singles),
        weight_bytes=read_per_token(model),
        memory_bytes=read_per_token(model, embedding=True),
        derive_seconds=derive_seconds,
        switch_seconds=statistics.median(switches),
    )


def read_per_token(model: Any, *, embedding: bool = False) -> int:
    """Bytes of parameters that one token needs at the current widths: all but those of an embedding that is no head.

    With `embedding` those as well, of which a token needs a row.
    """
    layers = Parts.of(model).linears.values()
    elastic = {id(parameter) for layer in layers for parameter in layer.parameters() if parameter is not layer.bias}
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    is_head = head is not None and getattr(head, "weight", None) is table
    skipped = elastic if embedding or is_head else elastic | {id(table)}
    others: int = sum(each.nbytes for each in model.parameters() if id(each) not in skipped)
    plain = sum(layer.weight.nbytes for layer in layers if layer.coded(layer.bits) is None)
    return others + plain + make_resident(model)


def _switch(model: Any, precision: Precision) -> None:
    set_precision(model, precision)
    make_resident(model)


def _forward(model: Any, ids: Tensor, cache: Any) -> Any:
    """The cache after another few tokens."""
    return cache_of(model(ids, **cache_arguments(cache), use_cache=True, logits_to_keep=1))


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result
