"""A model's perplexity and size at each width, beside full precision and plain rounding."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from quept.evaluation.perplexity import perplexity
from quept.nn.size import current_bytes, full_precision_bytes, mean_bits
from quept.plan import PrecisionPlan, Widths
from quept.precision import at_precision, master_name, rounded_to_nearest


@dataclass(frozen=True)
class WidthResult:
    """One precision: perplexity as calibrated and rounded to nearest, and the model's bytes when packed at it.

    `bits` is the width of the weights, and of a plan the mean over them; `precision` names it, and the others that were
    asked for, as in `w4a8`, or is the plan's name.
    """

    bits: float
    precision: str
    perplexity: float | None
    baseline: float | None
    bytes: int


@dataclass(frozen=True)
class Evaluation:
    """All widths of one model on one text; lower is better.

    `full_precision` is measured without a width; `reference` names what that is, which a store's master is not quite.
    `full_precision_bytes` are those of the model before it was calibrated.
    """

    metric: str
    reference: str
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
    plans: Mapping[str, PrecisionPlan] | None = None,
    sequence_length: int,
    stride: int | None = None,
    calibrated: bool = True,
    baseline: bool = False,
    stored: torch.dtype | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Perplexity of an elastic model at full precision and at each of some precisions, on the same tokens.

    `plans` are measured as well, by name. `calibrated=False` leaves out the calibrated widths (for a model that was
    not), `baseline=True` adds plain rounding to nearest at the same granularity. `stored` is the checkpoint's dtype,
    for the sizes (None: the dtype that the model is held in). `progress` is told what is measured, windows done and in
    total. What a precision does not name runs at full precision.
    """
    parsed = [Widths.parse(precision) for precision in precisions]
    wanted: list[tuple[str, str, Widths | PrecisionPlan]] = [(str(each), named(each), each) for each in parsed]
    wanted += [(name, name, plan) for name, plan in (plans or {}).items()]
    for _, _, precision in wanted:
        with at_precision(model, precision):  # a width that is not there is told now, not after minutes
            pass

    def measure(label: str) -> float:
        report = None if progress is None else lambda done, total: progress(label, done, total)
        return perplexity(model, tokens, sequence_length=sequence_length, stride=stride, progress=report).value

    with at_precision(model, None):
        full_precision = measure(master_name(model))
    results = []
    for name, label, precision in wanted:
        value = rounded = None
        with at_precision(model, None):
            if baseline:
                with rounded_to_nearest(model, precision):
                    rounded = measure(f"{label}, rounding")
            with at_precision(model, precision):
                bits, bytes_ = mean_bits(model), current_bytes(model, stored or model.dtype)
                if calibrated:
                    value = measure(label)
        results.append(WidthResult(bits, name, value, rounded, bytes_))
    return Evaluation(
        metric="perplexity",
        reference=master_name(model),
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
