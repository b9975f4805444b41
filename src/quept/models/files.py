"""The files of a checkpoint: which of them hold its weights, and what each tensor is by its header."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from transformers.utils import cached_file

from quept.errors import InvalidInput

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
ADAPTER = "adapter_config.json"
POINTER = b"version https://git-lfs.github.com/spec/"
_READ_AS_TEXT = (".json", ".txt", ".model", ".jinja", ".tiktoken")  # of configurations, tokenizers and processors
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_NO_WEIGHTS = ("adapter_", "training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states")
_SHARD = re.compile(r"-\d+-of-(\d+)\.safetensors$")
_OTHERS = (".h5", ".msgpack", ".onnx", ".npz", ".nemo")


@dataclass(frozen=True)
class TensorHeader:
    """A tensor of a checkpoint: its dtype as safetensors writes it, such as `BF16`, and its shape."""

    dtype: str
    shape: tuple[int, ...]


Headers = Mapping[str, TensorHeader]


def find_file(source: str | Path, name: str) -> Path | None:
    """Return a file of a local or Hub model, downloaded where it must be; None where the model has no such file."""
    if Path(source).is_dir():
        return path if (path := Path(source) / name).is_file() else None
    found = cached_file(
        str(source),
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def check_directory(directory: Path) -> None:
    """Raise `InvalidInput` for a directory with a Git LFS pointer in the place of a file, or without a model."""
    for path in sorted(directory.iterdir()):
        if path.suffix in _READ_AS_TEXT:
            _check_pulled(path)
    if (directory / ADAPTER).is_file() and not _weights(directory, ".safetensors", ".gguf", *_PICKLES):
        raise InvalidInput(
            f"{directory} holds a PEFT adapter, not a model. Merge it in Python first: `model = "
            f"AutoPeftModelForCausalLM.from_pretrained({str(directory)!r})`, with peft's class for the model's task, "
            "then `model.merge_and_unload().save_pretrained(NEW)`; save the tokenizer there as well, and give NEW."
        )
    if not (directory / CONFIG).is_file() and (files := _files(directory, ".gguf")):
        raise _no_gguf(directory / files[0])


def is_a_file(path: Path) -> InvalidInput:
    """Return the error for a file that was given as a model."""
    if path.suffix == ".gguf":
        return _no_gguf(path)
    return InvalidInput(f"The model {path} is a file; give the directory of a Hugging Face model, or a Hub name.")


def read_headers(source: str | Path, opener: str) -> Headers:
    """Return the tensors that a checkpoint's safetensors hold, by name; empty where the Hub has no such files.

    `opener` is the name of transformers' class that opens it, for advice. Raises `InvalidInput` for files that are
    missing, damaged or disagree with their index.
    """
    if (single := find_file(source, SINGLE)) is not None:
        return _headers_of(single)
    if (index := find_file(source, INDEX)) is None:
        if Path(source).is_dir():
            raise _no_weights(Path(source), opener)
        return {}
    named = _read_index(index)
    _check_series(index, set(named.values()))
    headers: dict[str, TensorHeader] = {}
    for shard in sorted(set(named.values())):
        path = find_file(source, shard)
        if path is None:
            raise InvalidInput(f"{source} lacks {shard}, which {INDEX} names; download the model again.")
        held = _headers_of(path)
        wrong = sorted(name for name, where in named.items() if where == shard and name not in held)
        if wrong:
            raise InvalidInput(
                f"{source} has no {wrong[0]} in {shard}, where {INDEX} says that it is; download the model again."
            )
        if twice := sorted(headers.keys() & held.keys()):
            raise InvalidInput(f"{source} holds {twice[0]} in two files, {shard} and another; download it again.")
        headers |= held
    return headers


def unread_files(source: str | Path) -> list[str]:
    """Return the safetensors of a local checkpoint that are not read: adapters, and shards that no index names."""
    if not (directory := Path(source)).is_dir():
        return []
    read = {SINGLE} if (directory / SINGLE).is_file() else set(_read_index(directory / INDEX).values())
    return [name for name in _files(directory, ".safetensors") if name not in read]


def _read_index(path: Path) -> dict[str, str]:
    """Return the shard of each tensor by an index."""
    _check_pulled(path)
    try:
        named = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(named, dict) or not all(isinstance(shard, str) for shard in named.values()):
            raise ValueError("its weight_map is no map from tensors to files")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InvalidInput(f"The index {path} cannot be read ({error}); download the model again.") from None
    return named


def _headers_of(path: Path) -> dict[str, TensorHeader]:
    """Return the tensors of one file."""
    _check_pulled(path)
    try:
        with safe_open(path, framework="pt") as file:
            views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            return {name: TensorHeader(view.get_dtype(), tuple(view.get_shape())) for name, view in views.items()}
    except Exception as error:  # whatever a damaged file makes safetensors do
        raise InvalidInput(
            f"The weights in {path} cannot be read; quept reads safetensors only, whole and unaltered ({error})."
        ) from None


def _check_pulled(path: Path) -> None:
    """Raise `InvalidInput` for a file that is Git LFS's pointer to the content, and not the content."""
    if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(POINTER):
        raise InvalidInput(
            f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in {path.parent}, or download the "
            "model again."
        )


def _check_series(index: Path, named: set[str]) -> None:
    """Raise `InvalidInput` for a shard, one of as many as those that are named, that the index does not name."""
    totals = {match[1] for shard in named if (match := _SHARD.search(shard))}
    for name in _files(index.parent, ".safetensors"):
        if name not in named and (match := _SHARD.search(name)) and match[1] in totals:
            raise InvalidInput(f"{index} does not name {name}, which lies beside it; download the model again.")


def _files(directory: Path, *suffixes: str) -> list[str]:
    """Return the names of a directory's files with one of these suffixes."""
    return sorted(path.name for path in directory.iterdir() if path.suffix in suffixes and path.is_file())


def _weights(directory: Path, *suffixes: str) -> list[str]:
    """Return the names of the files with one of these suffixes that may hold a model's weights."""
    return [name for name in _files(directory, *suffixes) if not name.startswith(_NO_WEIGHTS)]


def _no_weights(directory: Path, opener: str) -> InvalidInput:
    """Return the error for a directory without weights that quept reads, with what it holds instead."""
    if files := _files(directory, ".gguf"):
        return _no_gguf(directory / files[0])
    if files := _weights(directory, *_PICKLES):
        return InvalidInput(f"{directory} holds its weights as {files[0]}; {convert_pickles(directory, opener)}")
    if files := _weights(directory, ".safetensors"):
        return InvalidInput(
            f"{directory} holds {files[0]}, but neither {SINGLE} nor {INDEX}; rename the file to {SINGLE} if it is the "
            "whole model as transformers saves it, or download the model again."
        )
    if files := _files(directory, *_OTHERS):
        return InvalidInput(f"{directory} holds its weights as {files[0]}; quept reads safetensors only: convert them.")
    return InvalidInput(
        f"{directory} holds no weights: there is neither {SINGLE} nor {INDEX}; download the model again."
    )


def convert_pickles(source: str | Path, opener: str) -> str:
    """Return why pickles are not read, and how transformers' class `opener` converts them."""
    return (
        "quept reads safetensors only, since a pickle can run code when it is opened. If you trust it, convert it once "
        f"in Python: `from transformers import {opener}; "
        f"{opener}.from_pretrained({str(source)!r}).save_pretrained(NEW)`; copy the other files to NEW."
    )


def _no_gguf(path: Path) -> InvalidInput:
    return InvalidInput(
        f"{path} is in GGUF, which quept does not read. Give the model that it was made from; or convert a file of "
        "unquantized weights in Python: `AutoModelForCausalLM.from_pretrained(DIRECTORY, "
        f"gguf_file={path.name!r}).save_pretrained(NEW)`, and the same with AutoTokenizer."
    )
