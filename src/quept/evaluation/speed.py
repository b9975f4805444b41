"""The speed of a causal language model at a precision: prompts, single tokens, and switches to it."""

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
from quept.precision import Parts, PrecisionLike, make_resident, set_precision

SWITCHES = 5  # back and forth; the median counts


@dataclass(frozen=True)
class Speed:
    """The speed and memory of a model at one precision.

    Attributes:
        precision: as it is written, such as `4` or `w4a8`, or `full`.
        prefill: tokens of a prompt per second.
        decode: tokens generated per second, one at a time, after that prompt.
        weight_bytes: bytes of weights read for each token, see `read_per_token`.
        memory_bytes: bytes of weights held: those, and an embedding that is not tied to the head.
        derive_seconds: time of a switch to this precision when no derived weight is resident.
        switch_seconds: the same when all are.
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
        """Bytes of weights read per second while single tokens are decoded."""
        return self.weight_bytes * self.decode


def measure_speed(
    model: Any,
    precision: PrecisionLike,
    *,
    prompt: int = 128,
    tokens: int = 32,
    repeats: int = 3,
    on_step: Callable[[], None] = lambda: None,
) -> Speed:
    """Time a loaded model at one precision, on random tokens; it stays at that precision.

    Args:
        model: a language model by `quept.load`.
        precision: as for `set_precision`.
        prompt: number of tokens in the prompt.
        tokens: number of tokens decoded after it.
        repeats: number of runs of the prompt; the median counts, as it does over the decoded tokens.
        on_step: called after each prompt, and after each decoded token.

    Raises `InvalidInput` where prompt and tokens exceed the model's limit.
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
    """Return the bytes of parameters that one token reads at the precision in force.

    An embedding that is not tied to the head counts only with `embedding`, since a token reads a single row of it.
    """
    layers = Parts.of(model).linears.values()
    elastic = {id(parameter) for layer in layers for parameter in layer.parameters() if parameter is not layer.bias}
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    is_head = head is not None and getattr(head, "weight", None) is table
    skipped = elastic if embedding or is_head else elastic | {id(table)}
    others: int = sum(each.nbytes for each in model.parameters() if id(each) not in skipped)
    plain = sum(layer.weight.nbytes for layer in layers if layer.coded(layer.bits) is None)
    return others + plain + make_resident(model)


def _switch(model: Any, precision: PrecisionLike) -> None:
    set_precision(model, precision)
    make_resident(model)


def _forward(model: Any, ids: Tensor, cache: Any) -> Any:
    """Run more tokens; returns the key-value cache after them."""
    return cache_of(model(ids, **cache_arguments(cache), use_cache=True, logits_to_keep=1))


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result
