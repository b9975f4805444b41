"""Tensors in safetensors shards."""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quept.errors import CorruptArtifact
from quept.files import replacing

SHARD_LIMIT = 5_000_000_000  # bytes, as on the Hugging Face Hub
NOTE = "quept"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def write_shards(
    directory: Path,
    stem: str,
    tensors: Mapping[str, Tensor],
    limit: int = SHARD_LIMIT,
    note: str | None = None,
) -> list[Path]:
    """Write tensors to `<stem>.safetensors` and, if they exceed `limit` bytes, to `<stem>-part2.safetensors` and so on.

    The first shard has the plain name and is written last: if it exists, all others do. `note` becomes the only entry
    of its header, because safetensors writes several in no fixed order and the bytes must not vary.

    Returns:
        The paths of the shards, in order.

    Raises:
        QueptError: A file cannot be written.
    """
    parts = list(_split(tensors, limit))
    names = [stem] + [f"{stem}-part{number}" for number in range(2, len(parts) + 1)]
    paths = [directory / f"{name}.safetensors" for name in names]
    for path, part in reversed(list(zip(paths, parts, strict=True))):
        with replacing(path) as temporary:
            save_file(part, temporary, metadata={NOTE: note} if note is not None and path == paths[0] else None)
    return paths


def read_shards(paths: Iterable[Path]) -> dict[str, Tensor]:
    """Return all tensors of shards by name, mapped into memory rather than read.

    Raises:
        CorruptArtifact: A file cannot be read, or two hold a tensor of one name.
    """
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                if twice := set(file.keys()) & tensors.keys():
                    raise CorruptArtifact(
                        f"{path} holds the tensor {sorted(twice)[0]}, as another shard does; copy them again."
                    )
                tensors.update(sorted(_mapped(path, file).items()))
        except (SafetensorError, OSError, ValueError) as error:
            raise CorruptArtifact(_unreadable(path, error)) from None
    return tensors


def _mapped(path: Path, file: Any) -> dict[str, Tensor]:
    """Return the tensors of an open file by name, mapped into memory; raises ValueError for a type that none has.

    safetensors has checked that they follow each other without gaps. Its own `get_tensor` keeps two numbers of every
    tensor for ever (0.8.0), which a process that loads many models would notice.
    """
    with path.open("rb") as opened:
        place = 8 + int.from_bytes(opened.read(8), "little")
    storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
    found = {}
    for name in file.offset_keys():
        described = file.get_slice(name)
        shape, dtype = described.get_shape(), DTYPES.get(described.get_dtype())
        if dtype is None:
            raise ValueError(f"the tensor {name} is {described.get_dtype()}")
        # A storage for each, since torch.save writes storages whole, and none as two types.
        part = storage[place : place + prod(shape) * dtype.itemsize]
        place += part.nbytes()
        if part.data_ptr() % dtype.itemsize:  # only other programs write these
            part = part.clone()
        found[name] = torch.empty(0, dtype=dtype).set_(part).view(shape)
    return found


def read_note(path: Path) -> str | None:
    """Return the note in a shard's header, if any.

    Raises:
        CorruptArtifact: The file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            note: str | None = (file.metadata() or {}).get(NOTE)
            return note
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptArtifact(_unreadable(path, error)) from None


def shards_of(directory: Path, stem: str) -> list[Path]:
    """Return the shards that `write_shards` wrote under a stem, in order; none if it has not finished."""
    first = directory / f"{stem}.safetensors"
    return [first, *sorted(directory.glob(f"{stem}-part*.safetensors"))] if first.is_file() else []


def _unreadable(path: Path, error: Exception) -> str:
    # The message may quote the file, at any length.
    shortened = " ".join(str(error)[:300].split())
    return f"{path} is truncated or not a safetensors file ({shortened}); copy it again."


def _split(tensors: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        nbytes = tensor.numel() * tensor.element_size()
        if part and size + nbytes > limit:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += nbytes
    yield part
