"""Counts of correctly classified images, and the accuracies and differences that follow from them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quept.errors import InvalidInput
from quept.numerics.divergence import row_kl

_TOP = 5


@dataclass(frozen=True)
class Accuracy:
    """Shares of images, 0 to 1, with their standard errors `sqrt(p (1 - p) / images)`.

    Attributes:
        top1: The right class has the largest logit; of equal ones, the first class counts as larger.
        top1_error: Its standard error.
        top5: The right class is among the five largest logits, or among all if there are fewer classes.
        top5_error: Its standard error.
        images: Number of classified images. Images with logits that are not finite count as wrong.
    """

    top1: float
    top1_error: float
    top5: float
    top5_error: float
    images: int


@dataclass(frozen=True)
class Comparison:
    """A classifier compared with a reference classifier on the same images.

    Attributes:
        accuracy: Of the classifier.
        lost: The reference's top-1 share minus the classifier's; negative if the classifier's is larger.
        lost_error: The standard error of `lost`, from the differences image by image: most images are right or wrong
            with both, so it is far below that of either accuracy.
        kl: Mean KL(reference || classifier) of the predicted classes, in nats per image; inf if logits are not finite.
    """

    accuracy: Accuracy
    lost: float
    lost_error: float
    kl: float


@dataclass
class Counts:
    """Counts over the images seen so far."""

    images: int = 0
    top1: int = 0
    top5: int = 0
    lost: int = 0  # right with the reference alone
    won: int = 0  # right with the classifier alone
    kl: float = 0.0

    def add(self, logits: Tensor, labels: Tensor, reference: Tensor | None = None) -> None:
        """Count images by their logits `(B, classes)` and labels `(B,)`, and against the logits of a reference."""
        rank = _ranks(logits, labels)
        right = rank == 0
        self.images += len(labels)
        self.top1 += int(right.sum())
        self.top5 += int((rank < _TOP).sum())
        if reference is not None:
            expected = _ranks(reference, labels) == 0
            self.lost += int((expected & ~right).sum())
            self.won += int((right & ~expected).sum())
            # To the CPU first: not every accelerator has float64.
            self.kl += row_kl(reference, logits).cpu().double().sum().item()

    def accuracy(self) -> Accuracy:
        """Return the shares and their standard errors."""
        (top1, top1_error), (top5, top5_error) = (self._share(count) for count in (self.top1, self.top5))
        return Accuracy(top1, top1_error, top5, top5_error, self.images)

    def comparison(self) -> Comparison:
        """Return the shares and their differences from the reference's."""
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


def _ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the number of classes ranked above each image's own, `(B,)`; above all ranks if logits are not finite."""
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
