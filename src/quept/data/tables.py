"""Images and labels in tables: parquet files and data sets of the Hugging Face hub.

Data sets of the hub are streamed by `datasets`. Local parquet files are not: `datasets` reads them from the beginning
to the end, or copies them to its cache first, whereas a sample reads only the groups of rows that it needs. Besides, it
opens the paths that a file names beside its images.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quept.data.decoding import Content
from quept.data.hub import require
from quept.data.records import IndexedRecords, Record, unreadable
from quept.errors import InvalidInput

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABEL_NAMES = ("label", "labels", "fine_label", "cls", "class", "target", "y")

# Rows in memory at a time; a group of rows can hold all images of a file.
_ROWS = 64

# A sample of the hub is drawn from a buffer of this many times its size, which holds encoded images in memory.
_OVERSAMPLING = 4


@dataclass(frozen=True)
class Columns:
    """The columns of images and labels, and the names of the classes by number."""

    image: str
    label: str | None
    classes: tuple[str, ...] | None


def choose_columns(where: str, features: Mapping[str, Any]) -> Columns:
    """Choose the columns of images and labels by their types and usual names.

    Args:
        where: The beginning of messages.
        features: Columns as `datasets` describes them, for example `{"_type": "Image"}`, by name.

    Raises:
        InvalidInput: No column holds images, or several do and none has a usual name.
    """
    types = {name: feature.get("_type") if isinstance(feature, Mapping) else None for name, feature in features.items()}
    images = [name for name, type_ in types.items() if type_ == "Image"]
    image = images[0] if len(images) == 1 else next((name for name in _IMAGE_NAMES if name in images), None)
    if image is None:
        raise InvalidInput(
            f"{where} has {'several columns' if images else 'no column'} of images (its columns: "
            f"{', '.join(features) or 'none at all'}): name the one to use 'image'."
        )
    numbered = [name for name, type_ in types.items() if type_ == "ClassLabel"]
    only = numbered[0] if len(numbered) == 1 else None
    label = next((name for name in _LABEL_NAMES if types.get(name) in ("Value", "ClassLabel")), only)
    names = features[label].get("names") if label is not None else None
    return Columns(image, label, tuple(names) if names and all(isinstance(name, str) for name in names) else None)


class TableRecords(IndexedRecords):
    """`.parquet` files with a column of images, encoded or as `{"bytes", "path"}`, and perhaps one of labels."""

    def __init__(self, paths: Sequence[Path]) -> None:
        instead = ", or give a .npz file or a folder instead"
        self._errors = (require("pyarrow", f"'{paths[0]}'", otherwise=instead).ArrowException, OSError)
        self._parquet = require("pyarrow.parquet", f"'{paths[0]}'", otherwise=instead)
        self._paths = paths
        # Each group of rows: its file, its number in the file, and its first row among all.
        self._groups: list[tuple[Path, int, int]] = []
        labels: list[int | str | None] = []
        described = [self._open(path, labels) for path in paths]
        self._columns = described[0]
        if different := [path for path, columns in zip(paths, described, strict=True) if columns != described[0]]:
            raise InvalidInput(
                f"'{different[0]}' and '{paths[0]}' differ in their columns: give files of one data set only."
            )
        if not labels:
            raise InvalidInput(f"'{paths[0]}' has no rows: give a file with images in it.")
        texts = {label for label in labels if isinstance(label, str)}
        super().__init__(labels, self._columns.classes or tuple(sorted(texts)) or None)

    def _open(self, path: Path, labels: list[int | str | None]) -> Columns:
        try:
            with self._parquet.ParquetFile(path) as file:
                columns = choose_columns(f"'{path}'", _features(file.schema_arrow))
                first = len(labels)
                for group in range(file.metadata.num_row_groups):
                    self._groups.append((path, group, first))
                    first += file.metadata.row_group(group).num_rows
                if columns.label is None:
                    labels.extend([None] * file.metadata.num_rows)
                else:
                    found = file.read(columns=[columns.label]).column(0).to_pylist()
                    labels.extend(_checked(label, f"Row {row} of '{path}'") for row, label in enumerate(found, start=1))
                return columns
        except self._errors as error:
            raise unreadable(path, error) from error

    def _read(self, rows: Sequence[int]) -> Iterator[Record]:
        ends = [first for _, _, first in self._groups[1:]] + [self.count]
        wanted = iter(rows)
        row = next(wanted, None)
        for (path, group, first), end in zip(self._groups, ends, strict=True):
            if row is None or row >= end:
                continue
            for at, image in enumerate(self._images(path, group), start=first):
                if at == row:
                    yield Record(f"row {row + 1} of {path.name}", _content(image), self._labels[row])
                    row = next(wanted, None)
                if row is None or row >= end:
                    break

    def _images(self, path: Path, group: int) -> Iterator[Any]:
        try:
            with self._parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[self._columns.image]):
                    yield from (value.as_py() for value in batch.column(0))
        except self._errors as error:
            raise unreadable(path, error) from error


def _features(schema: Any) -> Mapping[str, Any]:
    """Return the description of a file's columns that `datasets` wrote into it, or else one by their types."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        if isinstance(described, dict) and set(described) == set(schema.names):
            return described
    except (KeyError, TypeError, ValueError, RecursionError):
        pass
    return {field.name: {"_type": "Image" if _holds_bytes(field.type) else "Value"} for field in schema}


def _holds_bytes(type_: Any) -> bool:
    if type_.num_fields:
        names = [type_.field(at).name for at in range(type_.num_fields)]
        return "bytes" in names
    return str(type_) in ("binary", "large_binary")


def _content(value: Any) -> Content:
    """Return the encoded image. A path beside it is not opened: it belongs to the machine that wrote the file."""
    encoded = value.get("bytes") if isinstance(value, Mapping) else value
    return encoded if isinstance(encoded, bytes) else None


def _checked(label: Any, where: str) -> int | str:
    if isinstance(label, int | str) and not isinstance(label, bool):
        return label
    raise InvalidInput(f"{where} has a label that is {type(label).__name__}, not a number or a name: correct it.")


@dataclass(frozen=True)
class HubImages:
    """Repository of a named data set, and the names of its splits for calibration (train) and evaluation (test)."""

    repository: str
    splits: Mapping[str, str]


HUB_IMAGES: Mapping[str, HubImages] = {
    # Published accuracies are of the validation split; the test split has no labels.
    "imagenet": HubImages("ILSVRC/imagenet-1k", {"train": "train", "test": "validation"}),
    "cifar10": HubImages("uoft-cs/cifar10", {"train": "train", "test": "test"}),
    "cifar100": HubImages("uoft-cs/cifar100", {"train": "train", "test": "test"}),
}
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")


def is_hub_name(source: str) -> bool:
    """Return whether `source` has the form of a name on the hub: `owner/name` or `owner/name:configuration`."""
    return source in HUB_IMAGES or _REPOSITORY.fullmatch(source) is not None


class HubRecords:
    """A data set of the hub, streamed: only the rows that are used are downloaded.

    A sample is taken from the stream that `datasets` shuffles, so classes are as frequent as in the data set.
    """

    known_labels: frozenset[int | str] = frozenset()

    def __init__(self, name: str, split: str) -> None:
        """Open a data set by name; `split` is one of its own, or train or test for the names in `HUB_IMAGES`."""
        named = HUB_IMAGES.get(name)
        repository, _, configuration = (named.repository if named else name).partition(":")
        self._name = name
        self._datasets = require("datasets", f"The data set '{name}'", otherwise=", or give a folder of images instead")
        self._split = named.splits.get(split, split) if named else split
        try:
            rows = self._datasets.load_dataset(repository, configuration or None, split=self._split, streaming=True)
            features = rows.features.to_dict() if rows.features is not None else {}
            self._columns = choose_columns(f"The data set '{name}'", features)
            # Left encoded: the shuffled images take little memory, and damaged ones can be skipped.
            self._rows = rows.cast_column(self._columns.image, self._datasets.Image(decode=False))
            self.count = _count(rows, self._split)
        except InvalidInput:
            raise
        except Exception as error:  # the network or the hub failed; every client raises classes of its own
            raise self._unreachable(error) from error
        self.labelled = self._columns.label is not None
        self.classes = self._columns.classes

    def stream(self) -> Iterator[Record]:
        """Yield all records, in order."""
        return self._records(self._rows)

    def sample(self, count: int, seed: int) -> Iterator[Record]:
        """Yield all records, shuffled within a buffer of several times `count`."""
        return self._records(self._rows.shuffle(seed=seed, buffer_size=_OVERSAMPLING * count))

    def _records(self, rows: Any) -> Iterator[Record]:
        columns = self._columns
        try:
            for number, row in enumerate(rows, start=1):
                where = f"row {number} of {self._name}"
                label = None if columns.label is None else _checked(row[columns.label], where.capitalize())
                yield Record(where, _content(row[columns.image]), label)
        except InvalidInput:
            raise
        except Exception as error:  # as above
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> InvalidInput:
        return InvalidInput(
            f"The data set '{self._name}' (split '{self._split}') could not be read from the Hugging Face hub: "
            f"{type(error).__name__}: {' '.join(str(error).split())} Check the name, the split and the network, or "
            f"give a local folder, .npz, .tar or .parquet file instead."
        )


def _count(rows: Any, split: str) -> int | None:
    splits = getattr(getattr(rows, "info", None), "splits", None) or {}
    count = getattr(splits.get(split), "num_examples", None)
    return count if isinstance(count, int) and count > 0 else None
