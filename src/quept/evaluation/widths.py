"""A model's perplexity and size at each width, beside full precision and plain rounding."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from quept.evaluation.perplexity import perplexity
from quept.nn.size import full_precision_bytes, packed_bytes
from quept.plan import Widths
from quept.precision import at_precision, rounded_to_nearest
from quept.widths import FULL


@dataclass(frozen=True)
class WidthResult:
    """One precision: perplexity as calibrated and rounded to nearest, and the model's bytes when packed at it.

    `bits` is the width of the weights; `precision` names it, and the others that were asked for, as in `w4a8`.
    """

    bits: int
    precision: str
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
    precisions: Sequence[int | str | Widths],
    *,
    sequence_length: int,
    stride: int | None = None,
    calibrated: bool = True,
    baseline: bool = False,
    stored: torch.dtype | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Perplexity of an elastic model at full precision and at each of some precisions, on the same tokens.

    `calibrated=False` leaves out the calibrated widths (for a model that was not), `baseline=True` adds plain
    rounding to nearest at the same granularity. `stored` is the checkpoint's dtype, for the sizes (None: the dtype
    that the model is held in). `progress` is told what is measured, windows done and in total.
    """

    wanted = [Widths.parse(precision) for precision in precisions]
    for widths in wanted:
        with at_precision(model, widths):  # a width that is not there is told now, not after minutes
            pass

    def measure(label: str) -> float:
        report = None if progress is None else lambda done, total: progress(label, done, total)
        return perplexity(model, tokens, sequence_length=sequence_length, stride=stride, progress=report).value

    with at_precision(model, None):
        full_precision = measure("full precision")
        rounded: dict[Widths, float] = {}
        for widths in wanted if baseline else ():
            with rounded_to_nearest(model, widths):
                rounded[widths] = measure(f"{named(widths)}, rounding")
    results = []
    for widths in wanted:
        value = None
        if calibrated:
            with at_precision(model, None), at_precision(model, widths):
                value = measure(named(widths))
        bits = widths.weights or FULL
        bytes_ = packed_bytes(model, bits, stored or model.dtype)
        results.append(WidthResult(bits, str(widths), value, rounded.get(widths), bytes_))
    return Evaluation(
        metric="perplexity",
        full_precision=full_precision,
        full_precision_bytes=full_precision_bytes(model, stored or model.dtype),
        tokens=tokens.numel(),
        sequence_length=sequence_length,
        stride=stride or sequence_length,
        results=tuple(results),
    )


def named(widths: Widths) -> str:
    """A precision in words: `4 bits`, `w4a8`."""
    name = str(widths)
    return f"{name} bits" if name.isdigit() else name
