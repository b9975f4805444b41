"""Atomic writing of files, and reading of JSON that people may have edited."""

import errno
import hashlib
import json
import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from quept.errors import InvalidInput, QueptError

TEMPORARY = ".writing"
LARGEST_JSON = 2**25  # bytes: of a plan with as many entries as are allowed, at twice the usual length


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; on success it is flushed to disk and renamed.

    On failure `path` stays as it was, and the temporary file is removed.

    Raises:
        QueptError: The disk is full, or the operating system refuses; the message names the file.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        temporary.unlink(missing_ok=True)  # from a killed process, perhaps with other permissions
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask has it; some writers make files that only their owner can read
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise QueptError(refusal(path, error)) from None
    finally:
        with suppress(OSError):  # a read-only disk refuses this too, which must not hide the first error
            temporary.unlink()


class TooLarge(ValueError):
    """A file has more bytes than are allowed."""


def read_text(path: Path, largest: int) -> str:
    """Return the text of a file in UTF-8; raises `TooLarge` for more than `largest` bytes, OSError and ValueError."""
    with path.open("rb") as file:
        # Not by the size that the system tells, which of a device is none.
        data = file.read(largest + 1)
    if len(data) > largest:
        raise TooLarge(f"it is larger than the {largest} bytes that are allowed")
    return data.decode("utf-8")


def read_json(path: str | Path, what: str, largest: int = LARGEST_JSON) -> Any:
    """Read JSON from a file of at most `largest` bytes, which messages call `what` (for example "a plan").

    Raises:
        InvalidInput: There is no such file, it is too large, it is not JSON, or an object holds a name twice.
    """
    path = Path(path)
    try:
        text = read_text(path, largest)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read as {what} ({error.strerror}); check the path.") from None
    except ValueError as error:
        raise InvalidInput(f"{path} is not {what}: {error}.") from None
    try:
        return json.loads(text, object_pairs_hook=_named_once)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is not {what}: it is not valid JSON ({error}). Correct it.") from None


def write_json(path: Path, data: Any) -> None:
    """Write `data` to `path` as JSON, atomically; equal data gives equal bytes."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"an object holds {reprlib.repr(name)} twice")
        found[name] = value
    return found


def refusal(path: Path, error: Exception) -> str:
    """Return a message on why `path` could not be written."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return f"The disk is full: {path} could not be written. Free some space, or choose another disk for the output."
    return f"{path} could not be written ({getattr(error, 'strerror', None) or error})."


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
