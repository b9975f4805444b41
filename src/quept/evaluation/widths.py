"""A model's perplexity and size at each width, beside full precision and plain rounding."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from quept.evaluation.perplexity import perplexity
from quept.nn.size import full_precision_bytes, packed_bytes
from quept.precision import at_precision, elastic_linears, rounded_to_nearest


@dataclass(frozen=True)
class WidthResult:
    """One width: perplexity as calibrated and rounded to nearest, and the model's bytes when packed at this width."""

    bits: int
    perplexity: float | None
    baseline: float | None
    bytes: int


@dataclass(frozen=True)
class Evaluation:
    """All widths of one model on one text; lower is better."""

    metric: str
    full_precision: float
    full_precision_bytes: int
    tokens: int
    sequence_length: int
    stride: int
    results: tuple[WidthResult, ...]

    def to_json(self) -> dict[str, Any]:
        """For `json.dump`."""
        return asdict(self)


def evaluate_widths(
    model: Any,
    tokens: Tensor,
    bits: Sequence[int],
    *,
    sequence_length: int,
    stride: int | None = None,
    calibrated: bool = True,
    baseline: bool = False,
    stored: torch.dtype | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Perplexity of an elastic model at full precision and at each width, on the same tokens.

    `calibrated=False` leaves out the calibrated widths (for a model that was not), `baseline=True` adds plain
    rounding to nearest at the same granularity. `stored` is the checkpoint's dtype, for the sizes (None: the dtype
    that the model is held in). `progress` is told what is measured, windows done and in total.
    """

    for layer in elastic_linears(model).values():
        for width in bits:
            layer.spec.groups.index(width)  # a width that is not there is told now, not after minutes

    def measure(label: str) -> float:
        report = None if progress is None else lambda done, total: progress(label, done, total)
        return perplexity(model, tokens, sequence_length=sequence_length, stride=stride, progress=report).value

    with at_precision(model, None):
        full_precision = measure("full precision")
        rounded = {}
        for width in bits if baseline else ():
            with rounded_to_nearest(model, width):
                rounded[width] = measure(f"{width} bits, rounding")
    results = []
    for width in bits:
        value = None
        if calibrated:
            with at_precision(model, width):
                value = measure(f"{width} bits")
        results.append(WidthResult(width, value, rounded.get(width), packed_bytes(model, width, stored or model.dtype)))
    return Evaluation(
        metric="perplexity",
        full_precision=full_precision,
        full_precision_bytes=full_precision_bytes(model, stored or model.dtype),
        tokens=tokens.numel(),
        sequence_length=sequence_length,
        stride=stride or sequence_length,
        results=tuple(results),
    )
