"""Writing files so that they are there whole or not at all."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from quept.errors import QueptError

TEMPORARY = ".writing"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; on success it is flushed to disk and renamed.

    Whatever goes wrong, no half-written file stays. A full disk and other refusals of the operating system become a
    `QueptError` that names the file.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process, perhaps with another mode
        temporary.touch()
        mode = temporary.stat().st_mode  # by the umask; some writers make files that only their owner can read
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise QueptError(refusal(path, error)) from None
    finally:
        with suppress(OSError):  # a read-only disk refuses this too, which must not hide the first refusal
            temporary.unlink()


def refusal(path: Path, error: Exception) -> str:
    """One sentence on why `path` could not be written."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return (
            f"The disk is full: {path} could not be written and was left out. Free some space, or choose another "
            "disk for the output."
        )
    return f"{path} could not be written ({getattr(error, 'strerror', None) or error})."


def sha256(path: Path) -> str:
    """The file's SHA-256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
