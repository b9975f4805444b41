"""Sources of images by name: folders, files, patterns of files, and data sets of the Hugging Face hub."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from quept.data.decoding import check_pillow
from quept.data.images import ImageSource, Preprocessing
from quept.data.records import ArchiveRecords, ArrayRecords, FolderRecords, Records
from quept.data.tables import HUB_IMAGES, HubRecords, TableRecords, is_hub_name
from quept.errors import InvalidInput


def load_images(
    source: str | Path, preprocessing: Preprocessing, *, split: str = "test", strict: bool = False
) -> ImageSource:
    """Open a source of images; they are decoded as they are asked for.

    Args:
        source: A folder that has a folder of images for each class, or images alone, which have no labels. `.npz`:
            arrays `x`, (N, H, W) or (N, H, W, C) of uint8, and `y`, (N,). `.tar`: pairs `key.jpg`, `key.cls`, as
            webdataset writes them. `.parquet`: a column of images and one of labels. Several `.tar` or `.parquet`
            files: a path with `*`, `?` or a range `{000..012}` in its last part. A data set of the Hugging Face hub:
            `owner/name`, `owner/name:configuration`, or one of imagenet, cifar10 and cifar100.
        preprocessing: The input that the model takes.
        split: Split of a data set of the hub; for imagenet, cifar10 and cifar100, train or test (for ImageNet the
            validation split). Other sources have no splits and are read whole.
        strict: Raise for an image that cannot be read, instead of skipping and counting it.

    Raises:
        InvalidInput: There is no such source, its content is not what its name promises, it holds no images or labels
            that the model does not know, or a package to read it is not installed.
    """
    check_pillow(preprocessing.channels)
    return ImageSource(str(source), _records(source, split), preprocessing, strict=strict)


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
    except (OSError, ValueError):  # a name that is too long, or with characters that no name may have
        return False


def _matches(path: Path) -> list[Path]:
    """Return the files that a pattern such as `a-{000..012}.tar` or `a-*.parquet` names, in order."""
    if braces := re.fullmatch(r"(.*)\{(\d{1,9})\.\.(\d{1,9})\}(.*)", path.name):
        before, first, last, after = braces.groups()
        paths = []
        for number in range(int(first), int(last) + 1):
            paths.append(path.with_name(f"{before}{number:0{len(first)}}{after}"))
            if not paths[-1].is_file():
                raise InvalidInput(
                    f"There is no '{paths[-1]}', which '{path}' names: give a range of files that all exist."
                )
        return paths
    if not any(character in path.name for character in "*?"):
        return []
    return sorted(found for found in path.parent.glob(path.name) if found.is_file())


_FILES: Mapping[str, Callable[[Path], Records]] = {".npz": ArrayRecords}
_SHARDS: Mapping[str, Callable[[Sequence[Path]], Records]] = {".tar": ArchiveRecords, ".parquet": TableRecords}
