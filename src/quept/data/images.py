"""Images and labels of a source as tensors: a sample for calibration, batches for evaluation."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from quept.data.decoding import UnreadableImage, decode
from quept.data.labels import ClassNumbers
from quept.data.records import Record, Records
from quept.errors import InvalidInput

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

# Images per batch, unless the caller chooses.
_BATCH = 32


class Preprocessing(Protocol):
    """The input that a classifier takes, and the way from an image to it."""

    @property
    def channels(self) -> int:
        """Channels of the images and of the tensors that `pixels` returns: 1 or 3."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the tensors that `pixels` returns; None if any size will do that all images share."""

    @property
    def classes(self) -> int:
        """Number of classes of the model."""

    @property
    def label2id(self) -> Mapping[str, int]:
        """Number of each class, by name."""

    def pixels(self, images: Sequence["Image"]) -> Tensor:
        """Return images of `channels` channels as float32 (B, C, H, W)."""


@dataclass(frozen=True)
class ImageSample:
    """Images drawn for calibration.

    Attributes:
        pixels: (N, C, H, W) float32.
        labels: (N,) int64; None if the source has none.
        names: Names of the images in the source.
    """

    pixels: Tensor
    labels: Tensor | None
    names: tuple[str, ...]

    def digest(self) -> str:
        """Return the SHA-256, in hex, of shape, pixels and labels, as little-endian bytes."""
        total = hashlib.sha256(repr((tuple(self.pixels.shape), self.labels is not None)).encode())
        total.update(self.pixels.contiguous().numpy().astype("<f4", copy=False).data)
        if self.labels is not None:
            total.update(self.labels.numpy().astype("<i8", copy=False).tobytes())
        return total.hexdigest()


class ImageSource:
    """Images of one source, decoded as they are asked for; `load_images` makes one.

    Attributes:
        name: The source as the caller named it.
        labelled: Whether the images have labels.
    """

    def __init__(self, name: str, records: Records, preprocessing: Preprocessing, *, strict: bool) -> None:
        self.name = name
        self.labelled = records.labelled
        self._records = records
        self._preprocessing = preprocessing
        self._strict = strict
        self._number = ClassNumbers(preprocessing.classes, preprocessing.label2id, records.classes)
        for label in sorted(records.known_labels, key=str):
            self._number(label, f"'{name}'")  # reject a label that is no class now, not after minutes
        self._shape: tuple[int, ...] | None = None
        if preprocessing.size is not None:
            self._shape = (preprocessing.channels, *preprocessing.size)
        self._skipped: dict[str, str] = {}

    @property
    def count(self) -> int | None:
        """Number of images, unreadable ones included; None if a data set of the hub does not say."""
        return self._records.count

    @property
    def skipped(self) -> Mapping[str, str]:
        """Images that were skipped so far because they could not be read: the reason by name."""
        return dict(self._skipped)

    def take(self, count: int, *, seed: int) -> ImageSample:
        """Draw images for calibration, in equal numbers from all classes if they have labels.

        Equal arguments give the same images in the same order. An image that cannot be read is replaced by another.

        Args:
            count: Number of images, at least 1.
            seed: Decides which images are drawn and in which order; 0 to 2**63 - 1.

        Raises:
            InvalidInput: The source has fewer images, one does not fit the model, or a number is out of range.
        """
        if count < 1:
            raise InvalidInput(f"The number of images is {count}, but must be 1 or more: raise --samples.")
        if not 0 <= seed < 2**63:
            raise InvalidInput(f"The seed is {seed}, but must be in 0 to 2**63 - 1: choose another with --seed.")
        if self.count is not None and self.count < count:
            raise self._too_few(self.count, count)
        # Images are read in the source's order, which may be by class: each gets a random place in the sample.
        places = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        pixels = torch.empty(0, dtype=torch.float32)
        labels: list[int | None] = [None] * count
        names = [""] * count
        given = 0
        for batch in _ahead(self._prepared(self._records.sample(count, seed), _BATCH, count)):
            if given == 0:
                pixels = torch.empty(count, *batch.pixels.shape[1:], dtype=torch.float32)
            chosen = places[given : given + len(batch.names)]
            pixels[chosen] = batch.pixels
            for place, label, name in zip(chosen.tolist(), batch.labels, batch.names, strict=True):
                labels[place], names[place] = label, name
            given += len(batch.names)
        if given < count:
            raise self._too_few(given, count)
        return ImageSample(pixels, self._tensor(labels), tuple(names))

    def batches(self, size: int = _BATCH, *, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield all images in the source's order, batch by batch; a thread prepares the next one meanwhile.

        Args:
            size: Images per batch, at least 1; the last batch may be smaller.
            limit: Stop after this many images, at least 1; None for all.

        Yields:
            Pixels (B, C, H, W) float32, and labels (B,) int64 or None.

        Raises:
            InvalidInput: At the first batch if a number is out of range; while iterating if an image does not fit the
                model or has a label that the model does not know, or if no image can be read.
        """
        for name, number in (("batch size", size), ("number of images", limit)):
            if number is not None and number < 1:
                raise InvalidInput(f"The {name} is {number}, but must be 1 or more.")
        for batch in _ahead(self._prepared(self._records.stream(), size, limit)):
            yield batch.pixels, self._tensor(batch.labels)

    def _prepared(self, records: Iterator[Record], size: int, limit: int | None) -> Iterator["_Batch"]:
        """Yield batches of `size` readable images, `limit` images in all."""
        given = 0
        while images := self._readable(records, size if limit is None else min(size, limit - given)):
            names = tuple(record.name for record, _ in images)
            labels = [
                None if record.label is None else self._number(record.label, f"'{record.name}' in '{self.name}'")
                for record, _ in images
            ]
            given += len(images)
            yield _Batch(self._pixels([image for _, image in images], names), labels, names)
        if given == 0:
            first = next(iter(self._skipped.items()), None)
            why = "" if first is None else f": '{first[0]}' for one, since {first[1]}"
            raise InvalidInput(f"'{self.name}' has no image that could be read{why}. Give images that are intact.")

    def _readable(self, records: Iterator[Record], count: int) -> list[tuple[Record, "Image"]]:
        images: list[tuple[Record, Image]] = []
        while len(images) < count and (record := next(records, None)) is not None:
            try:
                images.append((record, decode(record.content, self._preprocessing.channels, record.name)))
            except UnreadableImage as error:
                if self._strict:
                    raise InvalidInput(
                        f"The image '{record.name}' in '{self.name}' cannot be read: {error}. Mend or remove it, or "
                        f"leave out --strict to skip such images."
                    ) from None
                self._skipped[record.name] = str(error)
        return images

    def _pixels(self, images: Sequence["Image"], names: Sequence[str]) -> Tensor:
        try:
            pixels = self._preprocessing.pixels(images)
        except Exception:  # a processor's errors do not name the image
            self._explain(images, names)
            raise
        if self._shape is None and pixels.ndim == 4:
            self._shape = tuple(pixels.shape[1:])
        if pixels.shape != (len(images), *(self._shape or ())) or not bool(torch.isfinite(pixels).all()):
            self._explain(images, names)
        return pixels

    def _explain(self, images: Sequence["Image"], names: Sequence[str]) -> None:
        """Prepare images one by one, and raise for the first that fails or has another shape than the model takes."""
        for image, name in zip(images, names, strict=True):
            where = f"The image '{name}' in '{self.name}' ({image.width} x {image.height} pixels)"
            try:
                pixels = self._preprocessing.pixels([image])
            except Exception as error:  # depends on the checkpoint's settings
                raise InvalidInput(
                    f"{where} cannot be prepared by the model's image processor: {' '.join(str(error).split())}. "
                    f"Check its preprocessor_config.json, and whether the image is of the kind that it expects."
                ) from error
            self._shape = self._shape or tuple(pixels.shape[1:])
            if tuple(pixels.shape) != (1, *self._shape):
                raise InvalidInput(
                    f"{where} becomes {_size(pixels.shape[1:])} pixels, but the model takes {_size(self._shape)} "
                    f"(channels x height x width), and its image processor does not resize: give images of that size."
                )
            if not bool(torch.isfinite(pixels).all()):
                raise InvalidInput(
                    f"{where} becomes pixels that are NaN or infinite: check image_std and rescale_factor in the "
                    f"model's preprocessor_config.json."
                )

    def _tensor(self, labels: Sequence[int | None]) -> Tensor | None:
        return torch.tensor(labels, dtype=torch.int64) if self.labelled else None

    def _too_few(self, found: int, wanted: int) -> InvalidInput:
        skipped = f" ({len(self._skipped)} more could not be read)" if self._skipped else ""
        return InvalidInput(
            f"'{self.name}' holds {found} images{skipped}, but {wanted} are needed: give more images, or lower "
            f"--samples."
        )


@dataclass(frozen=True)
class _Batch:
    pixels: Tensor
    labels: list[int | None]
    names: tuple[str, ...]


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(length) for length in shape)


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield `items`, each of which another thread computes while the one before it is used."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="quept-images") as executor:
        waiting = executor.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = executor.submit(next, items, None)
            yield item
