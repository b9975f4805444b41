"""The accuracy of an image classifier, and its comparison with another one on the same images."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from quept.errors import InvalidInput
from quept.evaluation.counts import Accuracy, Comparison, Counts
from quept.evaluation.finite import check_full_precision
from quept.evaluation.perplexity import eval_mode

Batches = Iterable[tuple[Tensor, Tensor | None]]  # pixels (B, C, H, W), labels (B,), as ImageSource.batches yields
Classifier = Callable[[Tensor], Tensor]  # pixels (B, C, H, W) to logits (B, classes)


def accuracy(
    model: Any,
    batches: Batches,
    *,
    total: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Accuracy:
    """Return the top-1 and top-5 accuracy of a Transformers image classifier.

    Args:
        model: Takes `pixel_values` and gives `.logits` (B, classes). It is evaluated in eval mode, on the device and in
            the dtype of its weights; its mode is restored afterwards.
        batches: Pixels and labels.
        total: Number of images, for `progress`.
        progress: Called as (images done, `total`) after each batch.

    Raises:
        InvalidInput: There are no images, no labels, labels that are no classes of the model, the model's output has
            no logits of classes, or it overflows at full precision; the layer is named.
    """
    counts = Counts()
    classify = classifier(model)
    with eval_mode(model), torch.inference_mode():
        for pixels, labels in labelled(batches):
            counts.add(classify(pixels), labels)
            if progress is not None:
                progress(counts.images, total)
    return counts.accuracy()


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
        reference: Returns the logits of full precision for pixels, such as `classifier(model)`.
        model: Returns the logits of the quantized model.
        batches: Pixels and labels.
        total: Number of images, for `progress`.
        progress: Called as (images done, `total`) after each batch.

    Raises:
        InvalidInput: As `accuracy`.
    """
    counts = Counts()
    with torch.inference_mode():
        for pixels, labels in labelled(batches):
            expected = reference(pixels)
            counts.add(model(pixels), labels, expected)
            if progress is not None:
                progress(counts.images, total)
    return counts.comparison()


def classifier(model: Any) -> Classifier:
    """Return a function from pixels to the logits (B, classes) of a Transformers image classifier.

    Pixels are moved to the device and the dtype of the model's weights.
    """

    def classify(pixels: Tensor) -> Tensor:
        pixels = pixels.to(model.device, model.dtype)
        logits = getattr(model(pixel_values=pixels), "logits", None)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise InvalidInput(
                f"The output of {type(model).__name__} has no logits of shape (images, classes): give a model for "
                f"image classification."
            )
        check_full_precision(model, logits, lambda: model(pixel_values=pixels))
        return logits

    return classify


def labelled(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches; raises `InvalidInput` where labels are missing or there is no batch."""
    empty = True
    for pixels, labels in batches:
        if labels is None:
            raise InvalidInput("The images have no labels, so no accuracy can be told: give images in class folders.")
        empty = False
        yield pixels, labels
    if empty:
        raise InvalidInput("There are no images to classify: give some.")
