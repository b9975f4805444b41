"""Judges: data to measure models on, opened once, whatever the models' task is.

A judge gives one number for a model as it is (`quality`), which plans are compared by, and the full report of a model
at several precisions (`evaluate`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from quept.config import Precision, PrecisionPlan
from quept.data import ImageSource
from quept.errors import InvalidInput
from quept.evaluation.accuracy import accuracy
from quept.evaluation.accuracy_precisions import AccuracyEvaluation, evaluate_accuracy
from quept.evaluation.perplexity import perplexity
from quept.evaluation.precisions import Evaluation, evaluate_precisions

Precisions = Sequence[int | str | Precision]
Report = Callable[[str, int, int | None], None]  # label, pieces of data done, and in total if that is known


@dataclass(frozen=True)
class DataOptions:
    """The amount of data to measure on, and its pieces; None leaves it to the task.

    Attributes:
        sequence_length: tokens per window.
        stride: tokens between the starts of windows.
        max_tokens: tokens to read at most.
        max_images: images to read at most.
        batch_size: images per forward pass.
        strict: whether an image that cannot be read is an error instead of left out.
    """

    sequence_length: int | None = None
    stride: int | None = None
    max_tokens: int | None = None
    max_images: int | None = None
    batch_size: int = 128
    strict: bool = False


@dataclass(frozen=True)
class Measured:
    """What an evaluation measures beside precisions; see `evaluate_precisions` for the fields."""

    plans: Mapping[str, PrecisionPlan] = field(default_factory=dict)
    calibrated: bool = True
    baseline: bool = False
    original: Any = None
    roundable: Any = None
    stored: torch.dtype | None = None

    def chosen(self, precisions: Precisions) -> Precisions:
        """Return the precisions, or none where nothing is measured at them."""
        return precisions if self.calibrated or self.baseline else ()

    @property
    def chosen_plans(self) -> Mapping[str, PrecisionPlan]:
        """The plans, or none where nothing is measured at them."""
        return self.plans if self.calibrated or self.baseline else {}


class Judge(ABC):
    """Data to measure models on.

    Attributes:
        metric: the name of what `quality` returns; lower is better.
    """

    metric: ClassVar[str]

    @property
    @abstractmethod
    def amount(self) -> str:
        """The amount of data, in words."""

    @abstractmethod
    def quality(self, model: Any, label: str = "", report: Report | None = None) -> float:
        """Return the metric of a model at the precision that is in force; `report` is told `label` and the progress."""

    @abstractmethod
    def evaluate(
        self, model: Any, precisions: Precisions, measured: Measured, report: Report | None = None
    ) -> Evaluation | AccuracyEvaluation:
        """Measure an elastic model at full precision and at each precision and plan.

        Without `calibrated` and `baseline` this is full precision alone.
        """


@dataclass(frozen=True)
class PerplexityJudge(Judge):
    """A stream of tokens to predict, `(tokens,)`, in windows of `sequence_length` every `stride` tokens."""

    metric = "perplexity"

    tokens: Tensor
    sequence_length: int
    stride: int | None = None

    @property
    def amount(self) -> str:
        """The number of tokens."""
        return f"{self.tokens.numel():,} tokens"

    def quality(self, model: Any, label: str = "", report: Report | None = None) -> float:
        """Return the perplexity."""
        progress = None if report is None else partial(report, label)
        found = perplexity(
            model, self.tokens, sequence_length=self.sequence_length, stride=self.stride, progress=progress
        )
        return found.value

    def evaluate(
        self, model: Any, precisions: Precisions, measured: Measured, report: Report | None = None
    ) -> Evaluation:
        """Measure perplexities and, with an `original`, divergences from it; see `evaluate_precisions`."""
        return evaluate_precisions(
            model,
            self.tokens,
            measured.chosen(precisions),
            plans=measured.chosen_plans,
            sequence_length=self.sequence_length,
            stride=self.stride,
            calibrated=measured.calibrated,
            baseline=measured.baseline,
            original=measured.original,
            roundable=measured.roundable,
            stored=measured.stored,
            progress=report,
        )


@dataclass(frozen=True)
class AccuracyJudge(Judge):
    """Images with labels, `batch_size` per forward pass, the first `limit` of them; `note` is told of skipped ones."""

    metric = "top-1 error (%)"

    source: ImageSource
    batch_size: int = 128
    limit: int | None = None
    note: Callable[[str], None] = lambda text: None

    @property
    def total(self) -> int | None:
        """The number of images, None where the source does not know it."""
        count = self.source.count
        return count if self.limit is None or count is None else min(self.limit, count)

    @property
    def amount(self) -> str:
        """The number of images."""
        return "images" if self.total is None else f"{self.total:,} images"

    def quality(self, model: Any, label: str = "", report: Report | None = None) -> float:
        """Return the top-1 error in percent."""
        progress = None if report is None else partial(report, label)
        batches = self.source.batches(self.batch_size, limit=self.limit)
        return 100 * (1 - accuracy(model, batches, total=self.total, progress=progress).top1)

    def evaluate(
        self, model: Any, precisions: Precisions, measured: Measured, report: Report | None = None
    ) -> AccuracyEvaluation:
        """Measure accuracies, see `evaluate_accuracy`; raises `InvalidInput` for an `original`."""
        if measured.original is not None:
            raise InvalidInput("Image classifiers are compared with their own full precision: leave the original out.")
        found = evaluate_accuracy(
            model,
            self.source.batches(self.batch_size, limit=self.limit),
            measured.chosen(precisions),
            plans=measured.chosen_plans,
            calibrated=measured.calibrated,
            baseline=measured.baseline,
            stored=measured.stored,
            total=self.total,
            progress=report,
        )
        note_skipped(self.source, self.note)
        return found


def note_skipped(source: ImageSource, note: Callable[[str], None]) -> None:
    """Tell `note` how many images of a source could not be read, if any."""
    if source.skipped:
        first = next(iter(source.skipped))
        note(f"{len(source.skipped)} images could not be read and were left out, {first} for one.")
