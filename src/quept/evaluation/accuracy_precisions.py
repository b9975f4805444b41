"""An image classifier's accuracy and size at each precision, compared with full precision and plain rounding."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quept.config import FULL, Precision, PrecisionPlan
from quept.evaluation.accuracy import Batches, Classifier, classifier, labelled
from quept.evaluation.candidates import Candidate, candidates
from quept.evaluation.counts import Accuracy, Comparison, Counts
from quept.evaluation.perplexity import eval_mode
from quept.layers.size import current_bytes, full_precision_bytes, mean_bits
from quept.precision import at_precision, master_name, rounded_to_nearest

# Pixels held at a time: every precision classifies them before the next ones are read, so images are decoded once.
_PIXEL_BYTES = 1 << 28

Labelled = tuple[Tensor, Tensor]  # pixels (B, C, H, W), labels (B,)


@dataclass(frozen=True)
class PrecisionAccuracy:
    """One precision compared with full precision: as calibrated and rounded to nearest, and the packed bytes at it.

    `bits` is the bit-width of the weights, for a plan the mean over them. `precision` is the precision as it is
    written, as in `w4a8`, or the plan's name.
    """

    bits: float
    precision: str
    calibrated: Comparison | None
    baseline: Comparison | None
    bytes: int


@dataclass(frozen=True)
class AccuracyEvaluation:
    """A classifier at several precisions on the same images; higher is better.

    `full_precision` is measured without a bit-width; `reference` names it, since a stored master is not quite it.
    `full_precision_bytes` is the size of the model before it was calibrated.
    """

    metric: str
    reference: str
    full_precision: Accuracy
    full_precision_bytes: int
    images: int
    results: tuple[PrecisionAccuracy, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary for `json.dump`."""
        return asdict(self)


def evaluate_accuracy(
    model: Any,
    batches: Batches,
    precisions: Sequence[int | str | Precision],
    *,
    plans: Mapping[str, PrecisionPlan] | None = None,
    calibrated: bool = True,
    baseline: bool = False,
    stored: torch.dtype | None = None,
    total: int | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> AccuracyEvaluation:
    """Measure an elastic classifier's accuracy at full precision and at each precision, on the same images.

    The batches are read once, with as many in memory as fit into 256 MiB; each precision classifies those before the
    next are read.

    Args:
        model: An image classifier with elastic layers.
        batches: Pixels and labels.
        precisions: The precisions to measure.
        plans: Plans to measure as well, by name.
        calibrated: False leaves out the calibrated bit-widths (for a model that was not calibrated).
        baseline: True adds plain rounding to nearest at the same granularity.
        stored: The checkpoint's dtype, for the sizes; None is the dtype of the model.
        total: Number of images, for `progress`.
        progress: Called as (label, images done at it, `total`) after each batch.

    Raises:
        InvalidInput: As `accuracy`; a bit-width that the model does not have.
    """
    wanted = candidates(precisions, plans)
    packed = {each.name: _size(model, each.precision, stored) for each in wanted}  # a missing bit-width fails here
    full = _Measure(master_name(model), nullcontext)
    rounded = {each.name: _Measure.rounded(model, each) for each in wanted if baseline}
    own = {each.name: _Measure.calibrated(model, each) for each in wanted if calibrated}
    classify = classifier(model)
    with eval_mode(model), torch.inference_mode():
        for chunk in _chunks(labelled(batches)):
            expected: list[Tensor] | None = None
            for measure in (full, *rounded.values(), *own.values()):
                with at_precision(model, None), measure.enter():
                    logits = measure.add(classify, chunk, expected, total, progress)
                expected = expected or logits
    return AccuracyEvaluation(
        metric="top-1 accuracy",
        reference=master_name(model),
        full_precision=full.counts.accuracy(),
        full_precision_bytes=full_precision_bytes(model, stored or model.dtype),
        images=full.counts.images,
        results=tuple(
            PrecisionAccuracy(bits, name, _comparison(own.get(name)), _comparison(rounded.get(name)), size)
            for name, bits, size in ((each.name, *packed[each.name]) for each in wanted)
        ),
    )


@dataclass(frozen=True)
class _Measure:
    """A precision to measure: its label, a context that sets it from full precision, and the counts."""

    label: str
    enter: Callable[[], AbstractContextManager[None]]
    counts: Counts = field(default_factory=Counts)

    @classmethod
    def calibrated(cls, model: Any, candidate: Candidate) -> "_Measure":
        return cls(candidate.label, partial(at_precision, model, candidate.precision))

    @classmethod
    def rounded(cls, model: Any, candidate: Candidate) -> "_Measure":
        return cls(f"{candidate.label}, rounding", partial(rounded_to_nearest, model, candidate.precision))

    def add(
        self,
        classify: Classifier,
        chunk: Sequence[Labelled],
        expected: Sequence[Tensor] | None,
        total: int | None,
        progress: Callable[[str, int, int | None], None] | None,
    ) -> list[Tensor]:
        """Count a chunk's images against the expected logits; returns the logits of each batch."""
        found = []
        for index, (pixels, labels) in enumerate(chunk):
            found.append(classify(pixels))
            self.counts.add(found[-1], labels, None if expected is None else expected[index])
            if progress is not None:
                progress(self.label, self.counts.images, total)
        return found


def _comparison(measure: _Measure | None) -> Comparison | None:
    return None if measure is None else measure.counts.comparison()


def _size(model: Any, precision: Precision | PrecisionPlan, stored: torch.dtype | None) -> tuple[float, int]:
    """Return the bits of the weights at a precision, and the bytes of the packed model."""
    with at_precision(model, None), at_precision(model, precision):
        bits = precision.weights or FULL if isinstance(precision, Precision) else mean_bits(model)
        return bits, current_bytes(model, stored or model.dtype)


def _chunks(batches: Iterable[Labelled]) -> Iterator[list[Labelled]]:
    """Yield as many batches at a time as fit into `_PIXEL_BYTES`, at least one."""
    chunk: list[Labelled] = []
    held = 0
    for pixels, labels in batches:
        if chunk and held + pixels.nbytes > _PIXEL_BYTES:
            yield chunk
            chunk, held = [], 0
        chunk.append((pixels, labels))
        held += pixels.nbytes
    yield chunk
