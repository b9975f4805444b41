"""Images and labels in folders, arrays and archives, read record by record.

Folders and archives are not left to `datasets`. Its `imagefolder` drops the labels of a single class and of folders of
different depth, takes a class named `test` or `train` for a split and reads formats for which Pillow starts other
programs. Its `webdataset` takes numbers alone for `.cls`, refuses an archive whose pairs lie apart or mix image
formats, and cannot seek: a sample balanced over the classes would read every archive twice as a whole.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
import torch

from quept.data.decoding import IMAGE_SUFFIXES, Content
from quept.errors import InvalidInput

# Records that are read together after the first `count`, to replace unreadable ones.
_SPARE = 16

# Largest size in bytes of a member `key.cls`, which holds a number or a name.
_LABEL_BYTES = 1024


@dataclass(frozen=True)
class Record:
    """An image that is not decoded yet: its name for messages, its content, and its label in the source."""

    name: str
    content: Content
    label: int | str | None


class Records(Protocol):
    """A source of records."""

    @property
    def count(self) -> int | None:
        """Number of records; None if the source does not say."""

    @property
    def labelled(self) -> bool:
        """Whether the records have labels."""

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes, in order of number if the labels are numbers; None if there are no names."""

    @property
    def known_labels(self) -> frozenset[int | str]:
        """Labels that are known before any image is read."""

    def stream(self) -> Iterator[Record]:
        """Yield all records, in order."""

    def sample(self, count: int, seed: int) -> Iterator[Record]:
        """Yield a random subset of `count` records, then others to replace those that cannot be used."""


class IndexedRecords:
    """Records whose number and labels are known before they are read."""

    def __init__(self, labels: Sequence[int | str | None], classes: Sequence[str] | None) -> None:
        self._labels = labels
        self.classes = classes
        self.labelled = bool(labels) and labels[0] is not None

    @property
    def count(self) -> int:
        """Number of records."""
        return len(self._labels)

    @property
    def known_labels(self) -> frozenset[int | str]:
        """All labels."""
        return frozenset(label for label in self._labels if label is not None)

    def stream(self) -> Iterator[Record]:
        """Yield all records, in order."""
        return self._read(range(self.count))

    def sample(self, count: int, seed: int) -> Iterator[Record]:
        """Yield records of all classes in equal numbers, as far as there are enough, in the source's order."""
        order = balanced_order(self._labels, seed)
        for start, end in [(0, count), *((at, at + _SPARE) for at in range(count, len(order), _SPARE))]:
            yield from self._read(sorted(order[start:end]))

    def _read(self, rows: Sequence[int]) -> Iterator[Record]:
        """Yield the records of rows, which ascend."""
        raise NotImplementedError


def balanced_order(labels: Sequence[int | str | None], seed: int) -> list[int]:
    """Return the rows in a random order, any beginning of which holds the classes in numbers as equal as possible."""
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    taken: Counter[int | str | None] = Counter()
    rank: dict[int, int] = {}
    for row in rows:
        rank[row] = taken[labels[row]]
        taken[labels[row]] += 1
    return sorted(rows, key=rank.__getitem__)  # stable: random among those of one rank


def unreadable(path: Path, error: Exception) -> InvalidInput:
    """Return the error for a file or folder that cannot be read."""
    return InvalidInput(
        f"'{path}' cannot be read ({' '.join(str(error).split())}): check the file and its permissions."
    )


class FolderRecords(IndexedRecords):
    """A folder with a folder for each class, which holds image files at any depth; or image files without labels.

    Other files, and all names that begin with a dot, are ignored.
    """

    def __init__(self, folder: Path) -> None:
        try:
            entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        except OSError as error:
            raise unreadable(folder, error) from error
        loose = [path for path in entries if _is_image(path)]
        found = {path.name: _images_below(path) for path in entries if path.is_dir()}
        labels = {name: paths for name, paths in found.items() if paths}
        if loose and labels:
            raise InvalidInput(
                f"'{folder}' holds images of its own ('{loose[0].name}') beside folders of images "
                f"('{next(iter(labels))}'): put every image into the folder of its class, or none."
            )
        if not loose and not labels:
            raise InvalidInput(
                f"'{folder}' holds no images: give a folder that has a folder of images for each class. Images are "
                f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))}."
            )
        self._folder = folder
        self._paths = loose or [path for paths in labels.values() for path in paths]
        each: list[int | str | None] = [name for name, paths in labels.items() for _ in paths]
        super().__init__(each or [None] * len(loose), tuple(labels) or None)

    def _read(self, rows: Sequence[int]) -> Iterator[Record]:
        for row in rows:
            path = self._paths[row]
            yield Record(str(path.relative_to(self._folder)), path, self._labels[row])


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _images_below(folder: Path) -> list[Path]:
    found = [
        Path(parent, name)
        for parent, folders, names in os.walk(folder, onerror=_refuse)
        for name in names
        if not name.startswith(".") and not Path(parent).name.startswith(".")
    ]
    return sorted(path for path in found if _is_image(path))


def _refuse(error: OSError) -> NoReturn:
    raise unreadable(Path(error.filename), error) from error


class ArrayRecords(IndexedRecords):
    """A `.npz` file with images `x`, (N, H, W) or (N, H, W, C) of uint8, and labels `y`, (N,), integers or texts."""

    def __init__(self, path: Path) -> None:
        images, labels = _arrays(path)
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
            raise InvalidInput(
                f"'{path}' has images 'x' of {images.dtype} and shape {images.shape}, but they must be uint8 of shape "
                f"(N, H, W), or (N, H, W, C) with 1 or 3 channels last."
            )
        if labels.ndim != 1 or labels.dtype.kind not in "iuU":
            raise InvalidInput(
                f"'{path}' has labels 'y' of {labels.dtype} and shape {labels.shape}, but they must be integers, or "
                f"class names, of shape (N,)."
            )
        if len(images) != len(labels):
            raise InvalidInput(f"'{path}' has {len(images)} images but {len(labels)} labels: give one for each.")
        if images.size == 0:
            raise InvalidInput(f"'{path}' holds no images: its 'x' has the shape {images.shape}.")
        self._path, self._images = path, images
        super().__init__(labels.tolist(), tuple(sorted(set(labels.tolist()))) if labels.dtype.kind == "U" else None)

    def _read(self, rows: Sequence[int]) -> Iterator[Record]:
        for row in rows:
            yield Record(f"image {row} of {self._path.name}", self._images[row], self._labels[row])


def _arrays(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if missing := [name for name in ("x", "y") if name not in arrays]:
                raise InvalidInput(
                    f"'{path}' has no array '{missing[0]}', only {', '.join(arrays) or 'none at all'}: save the "
                    f"images as 'x' and their labels as 'y'."
                )
            return arrays["x"], arrays["y"]
    except InvalidInput:
        raise
    # TypeError and AttributeError: a single .npy array under the wrong name.
    except (
        OSError,
        ValueError,
        EOFError,
        BadZipFile,
        ZlibError,
        NotImplementedError,
        TypeError,
        AttributeError,
    ) as error:
        if "pickle" in str(error):
            raise InvalidInput(
                f"'{path}' holds arrays of Python objects, or is no .npz file. Python objects are not read, since that "
                f"can run code: save images as uint8 and labels as integers."
            ) from error
        raise unreadable(path, error) from error


@dataclass(frozen=True)
class _Member:
    path: Path
    name: str
    offset: int
    size: int


class ArchiveRecords(IndexedRecords):
    """`.tar` files as webdataset writes them: pairs `key.jpg` and `key.cls`, the number or name of the class as text.

    Either all images have labels or none. Other members, and links, are ignored; nothing is unpacked to disk.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        pairs = [pair for path in paths for pair in _pairs(path)]
        if not pairs:
            raise InvalidInput(
                f"'{paths[0]}' holds no images: give an archive with pairs of members like 'key.jpg', 'key.cls'."
            )
        without = [image.name for image, label in pairs if label is None]
        if without and len(without) < len(pairs):
            raise InvalidInput(
                f"'{without[0]}' in '{paths[0]}' has no label, but others do: give each image a member 'key.cls'."
            )
        self._images = [image for image, _ in pairs]
        labels = [label for _, label in pairs]
        super().__init__(labels, tuple(sorted({label for label in labels if label is not None})) or None)

    def _read(self, rows: Sequence[int]) -> Iterator[Record]:
        for row in rows:
            image = self._images[row]
            yield Record(f"{image.path.name}:{image.name}", _contents(image), self._labels[row])


def _contents(member: _Member) -> bytes:
    try:
        with member.path.open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size)
    except OSError as error:
        raise unreadable(member.path, error) from error


def _pairs(path: Path) -> list[tuple[_Member, str | None]]:
    images: dict[str, _Member] = {}
    labels: dict[str, str] = {}
    try:
        # Not compressed: images can then be read by their offset.
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")  # the key ends at the first dot, as in webdataset
                key, suffix = f"{folder}/{stem}", "." + ending.lower()
                if not member.isreg() or member.issparse() or not stem:
                    continue
                if suffix == ".cls" and member.size <= _LABEL_BYTES and (file := archive.extractfile(member)):
                    labels[key] = file.read().decode("utf-8").strip()
                elif suffix in IMAGE_SUFFIXES and key not in images:
                    images[key] = _Member(path, member.name, member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise InvalidInput(
            f"'{path}' cannot be read as an uncompressed tar archive ({error}): check the file, and unpack or "
            f"recompress it if it is compressed."
        ) from error
    return [(image, labels.get(key)) for key, image in images.items()]
