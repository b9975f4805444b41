"""How many images a classifier gets right: alone, beside another, and at each of its widths."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quept.config import FULL, PrecisionPlan, Widths
from quept.errors import InvalidInput
from quept.evaluation.perplexity import eval_mode
from quept.evaluation.widths import named
from quept.layers.size import current_bytes, full_precision_bytes, mean_bits
from quept.precision import at_precision, master_name, rounded_to_nearest

Batches = Iterable[tuple[Tensor, Tensor | None]]  # pixels (B, C, H, W), labels (B,): what ImageSource.batches gives
Classifier = Callable[[Tensor], Tensor]  # pixels (B, C, H, W) to logits (B, classes)

# Pixels held at a time: every precision sees them before the next ones are read, so that images are decoded once.
_PIXEL_BYTES = 1 << 28

_TOP = 5


@dataclass(frozen=True)
class Accuracy:
    """Shares of images, 0 to 1, with their standard errors `sqrt(p (1 - p) / images)`.

    Attributes:
        top1: The right class has the largest logit; of equal ones, the first class counts as larger.
        top1_error: Its standard error.
        top5: The right class is among the five largest logits, or among all if there are fewer classes.
        top5_error: Its standard error.
        images: How many were classified. Images with logits that are not finite count as wrong.
    """

    top1: float
    top1_error: float
    top5: float
    top5_error: float
    images: int


@dataclass(frozen=True)
class Comparison:
    """A classifier beside another one, on the same images.

    Attributes:
        accuracy: Of this one.
        lost: How much less than the other's its top-1 share is; negative if it is more.
        lost_error: The standard error of `lost`, from the differences image by image: most images are right or wrong
            with both, so it is far below that of either accuracy.
        kl: Mean KL(other || this) of the predicted classes, in nats per image; inf if logits are not finite.
    """

    accuracy: Accuracy
    lost: float
    lost_error: float
    kl: float


@dataclass(frozen=True)
class WidthAccuracy:
    """One precision beside full precision: as calibrated and rounded to nearest, and the bytes when packed at it.

    `bits` is the width of the weights, and of a plan the mean over them; `precision` names it, and the others that were
    asked for, as in `w4a8`, or is the plan's name.
    """

    bits: float
    precision: str
    calibrated: Comparison | None
    baseline: Comparison | None
    bytes: int


@dataclass(frozen=True)
class AccuracyEvaluation:
    """All widths of one classifier on the same images; higher is better. `reference` names what has no width."""

    metric: str
    reference: str
    full_precision: Accuracy
    full_precision_bytes: int
    images: int
    results: tuple[WidthAccuracy, ...]

    def to_json(self) -> dict[str, Any]:
        """For `json.dump`."""
        return asdict(self)


def accuracy(
    model: Any,
    batches: Batches,
    *,
    total: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Accuracy:
    """Top-1 and top-5 accuracy of a Transformers image classifier.

    Args:
        model: Takes `pixel_values` and gives `.logits` (B, classes). It is evaluated in eval mode, where its weights
            lie and in their type; its mode is restored afterwards.
        batches: Pixels and labels.
        total: How many images there are, for `progress`.
        progress: Called as (images done, `total`) after each batch.

    Raises:
        InvalidInput: There are no images, no labels, labels that are no classes of the model, or the model's output
            has no logits of classes.
    """
    tally = _Tally()
    classify = classifier(model)
    with eval_mode(model), torch.inference_mode():
        for pixels, labels in _labelled(batches):
            tally.add(classify(pixels), labels)
            if progress is not None:
                progress(tally.images, total)
    return tally.accuracy()


def compare(
    reference: Classifier,
    model: Classifier,
    batches: Batches,
    *,
    total: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Comparison:
    """Compare two classifiers image by image; `reference` is called right before `model` for each batch.

    Both are called as they are: models should be in eval mode.

    Args:
        reference: Gives the logits of full precision for pixels, such as `classifier(model)`.
        model: Gives the logits of the quantized model.
        batches: Pixels and labels.
        total: How many images there are, for `progress`.
        progress: Called as (images done, `total`) after each batch.

    Raises:
        InvalidInput: As `accuracy`.
    """
    tally = _Tally()
    with torch.inference_mode():
        for pixels, labels in _labelled(batches):
            expected = reference(pixels)
            tally.add(model(pixels), labels, expected)
            if progress is not None:
                progress(tally.images, total)
    return tally.comparison()


def evaluate_accuracy(
    model: Any,
    batches: Batches,
    precisions: Sequence[int | str | Widths],
    *,
    plans: Mapping[str, PrecisionPlan] | None = None,
    calibrated: bool = True,
    baseline: bool = False,
    stored: torch.dtype | None = None,
    total: int | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> AccuracyEvaluation:
    """Accuracy of an elastic classifier at full precision and at each of some precisions, on the same images.

    The batches are gone through once, with as many in memory as fit into 256 MiB; each precision classifies those
    before the next are read.

    Args:
        model: An image classifier with elastic layers.
        batches: Pixels and labels.
        precisions: Which to measure.
        plans: To be measured as well, by name.
        calibrated: False leaves out the calibrated widths (for a model that was not).
        baseline: True adds plain rounding to nearest at the same granularity.
        stored: The checkpoint's dtype, for the sizes; None is the one that the model is held in.
        total: How many images there are, for `progress`.
        progress: CalibrationDisplay what is measured, images done at it and `total`.

    Raises:
        InvalidInput: As `accuracy`; a width that the model does not have.
    """
    parsed = [Widths.parse(precision) for precision in precisions]
    wanted: list[tuple[str, str, Widths | PrecisionPlan]] = [(str(each), named(each), each) for each in parsed]
    wanted += [(name, name, plan) for name, plan in (plans or {}).items()]
    packed: dict[str, tuple[float, int]] = {}
    for name, _, precision in wanted:
        with at_precision(model, None), at_precision(model, precision):  # one that is not there is told now
            bits = precision.weights or FULL if isinstance(precision, Widths) else mean_bits(model)
            packed[name] = bits, current_bytes(model, stored or model.dtype)
    full = _Measure(master_name(model), nullcontext)
    rounded = {
        name: _Measure(f"{label}, rounding", partial(rounded_to_nearest, model, precision))
        for name, label, precision in (wanted if baseline else ())
    }
    own = {
        name: _Measure(label, partial(at_precision, model, precision))
        for name, label, precision in (wanted if calibrated else ())
    }
    classify = classifier(model)
    with eval_mode(model), torch.inference_mode():
        for chunk in _chunks(_labelled(batches)):
            expected: list[Tensor] | None = None
            for measure in (full, *rounded.values(), *own.values()):
                report = None if progress is None else partial(progress, measure.label)
                with at_precision(model, None), measure.enter():
                    logits = _add(measure.tally, classify, chunk, expected, total, report)
                expected = expected or logits
    return AccuracyEvaluation(
        metric="top-1 accuracy",
        reference=master_name(model),
        full_precision=full.tally.accuracy(),
        full_precision_bytes=full_precision_bytes(model, stored or model.dtype),
        images=full.tally.images,
        results=tuple(
            WidthAccuracy(
                packed[name][0],
                name,
                own[name].tally.comparison() if name in own else None,
                rounded[name].tally.comparison() if name in rounded else None,
                packed[name][1],
            )
            for name, _, _ in wanted
        ),
    )


def classifier(model: Any) -> Classifier:
    """The logits (B, classes) of a Transformers image classifier, which gets pixels where and as its weights are."""

    def classify(pixels: Tensor) -> Tensor:
        logits = getattr(model(pixel_values=pixels.to(model.device, model.dtype)), "logits", None)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise InvalidInput(
                f"The output of {type(model).__name__} has no logits of shape (images, classes): give a model for "
                f"image classification."
            )
        return logits

    return classify


def _labelled(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    empty = True
    for pixels, labels in batches:
        if labels is None:
            raise InvalidInput("The images have no labels, so no accuracy can be told: give images in class folders.")
        empty = False
        yield pixels, labels
    if empty:
        raise InvalidInput("There are no images to classify: give some.")


def _chunks(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """As many batches at a time as fit into `_PIXEL_BYTES`, at least one."""
    chunk: list[tuple[Tensor, Tensor]] = []
    held = 0
    for pixels, labels in batches:
        if chunk and held + pixels.nbytes > _PIXEL_BYTES:
            yield chunk
            chunk, held = [], 0
        chunk.append((pixels, labels))
        held += pixels.nbytes
    yield chunk


@dataclass
class _Tally:
    """Counts over the images seen so far."""

    images: int = 0
    top1: int = 0
    top5: int = 0
    lost: int = 0  # right with the other one, and wrong
    won: int = 0  # the reverse
    kl: float = 0.0

    def add(self, logits: Tensor, labels: Tensor, reference: Tensor | None = None) -> None:
        """Count images by their logits (B, classes) and labels (B,), and beside the logits of another classifier."""
        rank = _ranks(logits, labels)
        right = rank == 0
        self.images += len(labels)
        self.top1 += int(right.sum())
        self.top5 += int((rank < _TOP).sum())
        if reference is not None:
            expected = _ranks(reference, labels) == 0
            self.lost += int((expected & ~right).sum())
            self.won += int((right & ~expected).sum())
            log_p, log_q = reference.float().log_softmax(-1), logits.float().log_softmax(-1)
            # To the CPU first: not every accelerator has float64.
            self.kl += (log_p.exp() * (log_p - log_q)).sum(-1).cpu().double().sum().item()

    def accuracy(self) -> Accuracy:
        """Shares and their standard errors."""
        (top1, top1_error), (top5, top5_error) = (self._share(count) for count in (self.top1, self.top5))
        return Accuracy(top1, top1_error, top5, top5_error, self.images)

    def comparison(self) -> Comparison:
        """Shares, and how they differ from the other classifier's."""
        lost = (self.lost - self.won) / self.images
        # The differences are 1, 0 and -1: the mean of their squares is the share of those that are not 0.
        variance = (self.lost + self.won) / self.images - lost**2
        kl = self.kl / self.images
        return Comparison(
            self.accuracy(), lost, math.sqrt(variance / self.images), kl if math.isfinite(kl) else math.inf
        )

    def _share(self, count: int) -> tuple[float, float]:
        share = count / self.images
        return share, math.sqrt(share * (1 - share) / self.images)


@dataclass(frozen=True)
class _Measure:
    """A precision to be measured: its name, how the model gets to it from full precision, and what was counted."""

    label: str
    enter: Callable[[], AbstractContextManager[None]]
    tally: _Tally = field(default_factory=_Tally)


def _add(
    tally: _Tally,
    classify: Classifier,
    chunk: Sequence[tuple[Tensor, Tensor]],
    expected: Sequence[Tensor] | None,
    total: int | None,
    progress: Callable[[int, int | None], None] | None,
) -> list[Tensor]:
    """Count a chunk's images, beside the logits that are expected; returns the logits of each batch."""
    found = []
    for at, (pixels, labels) in enumerate(chunk):
        found.append(classify(pixels))
        tally.add(found[-1], labels, None if expected is None else expected[at])
        if progress is not None:
            progress(tally.images, total)
    return found


def _ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes each image is rather taken for than its own, (B,); all of them if its logits are not finite."""
    classes = logits.shape[-1]
    labels = labels.to(logits.device)
    if not bool(((labels >= 0) & (labels < classes)).all()):
        raise InvalidInput(
            f"There are labels from {int(labels.min())} to {int(labels.max())}, but the model has the classes 0 to "
            f"{classes - 1}: give images of the classes that it knows."
        )
    own = logits.gather(1, labels[:, None])
    before = torch.arange(classes, device=logits.device) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & before)).sum(-1)
    return rank.masked_fill(~torch.isfinite(logits).all(-1), classes + _TOP)
