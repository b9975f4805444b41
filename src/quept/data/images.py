"""Images and labels of a source, as a classifier takes them: a sample for calibration, batches for evaluation."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from quept.data.decoding import UnreadableImage, check_pillow, decode
from quept.data.labels import ClassNumbers
from quept.data.records import ArchiveRecords, ArrayRecords, FolderRecords, Record, Records
from quept.data.tables import HUB_IMAGES, HubRecords, TableRecords, is_hub_name
from quept.errors import InvalidInput

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

# Images that are prepared together where the caller names no number.
_BATCH = 32


class Preprocessing(Protocol):
    """What a classifier takes, and how a picture becomes that."""

    @property
    def channels(self) -> int:
        """Of the pictures and of what `pixels` gives: 1 or 3."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of what `pixels` gives; None if any will do that is the same for all images."""

    @property
    def classes(self) -> int:
        """How many classes the model knows."""

    @property
    def label2id(self) -> Mapping[str, int]:
        """The number of each class by its name."""

    def pixels(self, images: Sequence["Image"]) -> Tensor:
        """Pictures with the right channels as float32 (B, C, H, W)."""


@dataclass(frozen=True)
class ImageSample:
    """Images drawn for calibration.

    Attributes:
        pixels: (N, C, H, W) float32.
        labels: (N,) int64; None if the source has none.
        names: What the source calls them.
    """

    pixels: Tensor
    labels: Tensor | None
    names: tuple[str, ...]

    def digest(self) -> str:
        """SHA-256, in hex, of shape, pixels and labels, as little-endian bytes."""
        total = hashlib.sha256(repr((tuple(self.pixels.shape), self.labels is not None)).encode())
        total.update(self.pixels.contiguous().numpy().astype("<f4", copy=False).data)
        if self.labels is not None:
            total.update(self.labels.numpy().astype("<i8", copy=False).tobytes())
        return total.hexdigest()


def load_images(
    source: str | Path, preprocessing: Preprocessing, *, split: str = "test", strict: bool = False
) -> "ImageSource":
    """Open a source of labelled images; its images are decoded as they are asked for.

    Args:
        source: A folder with a folder of images for each class (or of images alone, without labels). `.npz`: arrays
            `x`, (N, H, W) or (N, H, W, C) of uint8, and `y`, (N,). `.tar`: pairs `key.jpg`, `key.cls`, as webdataset
            writes them. `.parquet`: a column of images and one of labels. Several `.tar` or `.parquet` files: a path
            with `*`, `?` or a range `{000..012}` in its last part. A data set of the Hugging Face hub: `owner/name`,
            `owner/name:configuration`, or one of imagenet, cifar10 and cifar100.
        preprocessing: How a picture becomes what the model takes.
        split: Which part of a data set of the hub; for those three, train or test (the validation part of ImageNet).
            Other sources have no parts and are read whole.
        strict: Raise for an image that cannot be read, instead of leaving it out and counting it.

    Raises:
        InvalidInput: There is no such source, it is not what its name says, it holds no images, or labels that the
            model does not know, or a package for it is not installed.
    """
    check_pillow(preprocessing.channels)
    return ImageSource(str(source), _records(source, split), preprocessing, strict=strict)


class ImageSource:
    """Images of one source. Made by `load_images`.

    Attributes:
        name: The source, as it was given.
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
            self._number(label, f"'{name}'")  # a label that is no class is told now, not after minutes
        self._shape: tuple[int, ...] | None = None
        if preprocessing.size is not None:
            self._shape = (preprocessing.channels, *preprocessing.size)
        self._skipped: dict[str, str] = {}

    @property
    def count(self) -> int | None:
        """How many images there are, unreadable ones included; None if a data set of the hub does not say."""
        return self._records.count

    @property
    def skipped(self) -> Mapping[str, str]:
        """The images that were left out so far because they could not be read, by name, and why."""
        return dict(self._skipped)

    def take(self, count: int, *, seed: int) -> ImageSample:
        """Draw images for calibration, from all classes alike where they have labels.

        The same images in the same order for the same arguments. An image that cannot be read is replaced by another.

        Args:
            count: How many, at least 1.
            seed: Decides which are drawn and their order; 0 to 2**63 - 1.

        Raises:
            InvalidInput: There are fewer images, one does not fit the model, or a number is out of range.
        """
        if count < 1:
            raise InvalidInput(f"The number of images is {count}, but must be 1 or more: raise --samples.")
        if not 0 <= seed < 2**63:
            raise InvalidInput(f"The seed is {seed}, but must be in 0 to 2**63 - 1: choose another with --seed.")
        if self.count is not None and self.count < count:
            raise self._too_few(self.count, count)
        # Sources are read in their order, which may be that of their classes: each image gets a place at random.
        places = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        pixels = torch.empty(0)
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
        """All images in the source's order, a batch at a time; the next is prepared while one is being used.

        Args:
            size: Images per batch, at least 1; the last batch may be smaller.
            limit: Stop after that many images, at least 1; None goes through all.

        Yields:
            Pixels (B, C, H, W) float32, and labels (B,) int64 or None.

        Raises:
            InvalidInput: At the first batch for a number out of range; while iterating if an image does not fit the
                model, has a label that the model does not know, or if none can be read.
        """
        for name, number in (("batch size", size), ("number of images", limit)):
            if number is not None and number < 1:
                raise InvalidInput(f"The {name} is {number}, but must be 1 or more.")
        for batch in _ahead(self._prepared(self._records.stream(), size, limit)):
            yield batch.pixels, self._tensor(batch.labels)

    def _prepared(self, records: Iterator[Record], size: int, limit: int | None) -> Iterator["_Batch"]:
        """Batches of `size` readable images, `limit` in all."""
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
        except Exception:  # a processor's errors do not say which image it was
            self._explain(images, names)
            raise
        if self._shape is None and pixels.ndim == 4:
            self._shape = tuple(pixels.shape[1:])
        if pixels.shape != (len(images), *(self._shape or ())) or not bool(torch.isfinite(pixels).all()):
            self._explain(images, names)
        return pixels

    def _explain(self, images: Sequence["Image"], names: Sequence[str]) -> None:
        """Raise for the first image that is not prepared as it should be when it is alone."""
        for image, name in zip(images, names, strict=True):
            where = f"The image '{name}' in '{self.name}' ({image.width} x {image.height} pixels)"
            try:
                pixels = self._preprocessing.pixels([image])
            except Exception as error:  # whatever the checkpoint's settings make of the image
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
    """The same items, each made by another thread while the one before it is being used."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="quept-images") as executor:
        waiting = executor.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = executor.submit(next, items, None)
            yield item


def _records(source: str | Path, split: str) -> Records:
    path = Path(source)
    allowed = (
        f"a folder of class folders, a file that ends in {', '.join((*_FILES, *_SHARDS))}, a data set of the Hugging "
        f"Face hub like owner/name, or one of {', '.join(HUB_IMAGES)}"
    )
    if isinstance(source, str) and source in HUB_IMAGES:
        return HubRecords(source, split)
    if _exists(path.is_dir):
        return FolderRecords(path)
    paths = [path] if _exists(path.is_file) else _matches(path)
    suffix = path.suffix.lower()
    if paths and suffix in _FILES and len(paths) == 1:
        return _FILES[suffix](paths[0])
    if paths and suffix in _SHARDS:
        return _SHARDS[suffix](paths)
    if paths:
        raise InvalidInput(f"'{source}' is of an unknown kind ('{path.suffix}'): give {allowed}.")
    if is_hub_name(str(source)) and suffix not in (*_FILES, *_SHARDS):
        return HubRecords(str(source), split)
    raise InvalidInput(f"There is no '{source}': give {allowed}.")


def _exists(found: Callable[[], bool]) -> bool:
    try:
        return found()
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        return False


def _matches(path: Path) -> list[Path]:
    """The existing files that a pattern means, in order: `a-{000..012}.tar`, `a-*.parquet`."""
    if braces := re.fullmatch(r"(.*)\{(\d{1,9})\.\.(\d{1,9})\}(.*)", path.name):
        before, first, last, after = braces.groups()
        paths = []
        for number in range(int(first), int(last) + 1):
            paths.append(path.with_name(f"{before}{number:0{len(first)}}{after}"))
            if not paths[-1].is_file():
                raise InvalidInput(
                    f"There is no '{paths[-1]}', which '{path}' names: give a range of files that exist."
                )
        return paths
    if not any(character in path.name for character in "*?"):
        return []
    return sorted(found for found in path.parent.glob(path.name) if found.is_file())


_FILES: Mapping[str, Callable[[Path], Records]] = {".npz": ArrayRecords}
_SHARDS: Mapping[str, Callable[[Sequence[Path]], Records]] = {".tar": ArchiveRecords, ".parquet": TableRecords}
