"""Atomic writing of files, and reading of JSON that people may have edited."""

import errno
import hashlib
import json
import os
import reprlib
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from quept.errors import InvalidInput, QueptError

TEMPORARY = ".writing"
LARGEST_JSON = 2**25  # bytes: of a plan with as many entries as are allowed, at twice the usual length
LONGEST_SHOWN = 200  # characters of a path in a message
MOST_LINKS = 40  # that lead to a file, as in Linux


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success `path` has its content.

    A regular file is replaced in one step, once the content is on the disk; the temporary path is beside it. It keeps
    its permissions. A link stays, and the file that it points to is replaced. A device, a pipe, and what a descriptor
    is open for (`/dev/stdout`) are written through, and so is a file in a folder that takes no other.

    On failure a file that is replaced stays as it was, and the temporary one is removed.

    Raises:
        InvalidInput: `path` is a directory, a block device, or no path.
        QueptError: The disk is full, or the operating system refuses; the message names the file.
    """
    with explained(path):
        target = _target(path)
        temporary = None if target is None else _beside(target)
        if target is None or temporary is None:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder) / "content"
                _write_through(Path(folder) / "content", path)
            return
        try:
            mode = _mode(target, temporary)  # not as its writer has it: some make files that only their owner can read
            yield temporary
            temporary.chmod(mode)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            try:
                temporary.replace(target)
            except OSError as error:
                if error.errno != errno.EBUSY:  # a file that is mounted, as into a container, cannot be replaced
                    raise
                _write_through(temporary, path)
        finally:
            with suppress(OSError):  # a read-only disk refuses this too, which must not hide the first error
                temporary.unlink()


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Raise `QueptError`, with a message on why `path` could not be written, for errors of the operating system."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise QueptError(refusal(path, error)) from None


def _target(path: Path) -> Path | None:
    """Return the regular file to replace, links followed; None for what is to be written through."""
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        return Path(os.path.realpath(path))
    except ValueError as error:
        raise InvalidInput(f"{str(path)!r} is not a path ({error}); give another.") from None
    if stat.S_ISDIR(kind) or stat.S_ISBLK(kind):
        found = "directory" if stat.S_ISDIR(kind) else "block device"
        raise InvalidInput(f"{path} is a {found}; give the name of a file.")
    return Path(os.path.realpath(path)) if stat.S_ISREG(kind) and _descriptor(path) is None else None


def _descriptor(path: Path) -> int | None:
    """Return the descriptor of this process that a path such as `/dev/stdout` or `/dev/fd/3` stands for, or None."""
    descriptors = os.path.realpath("/proc/self/fd")
    for _ in range(MOST_LINKS):
        path = path.absolute()
        if os.path.realpath(path.parent) == descriptors and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _beside(target: Path) -> Path | None:
    """Make an empty temporary file beside a target; None where the folder takes none but the target can be written."""
    temporary = target.with_name(target.name + TEMPORARY)
    try:
        temporary.unlink(missing_ok=True)  # from a killed process, perhaps with other permissions
        temporary.touch()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and os.access(target, os.W_OK):
            return None
        raise
    return temporary


def _mode(target: Path, temporary: Path) -> int:
    """Return the permissions of a target, or those that the umask gave a temporary file; its owner is taken over."""
    try:
        before = target.stat()
    except FileNotFoundError:
        return stat.S_IMODE(temporary.stat().st_mode)
    with suppress(OSError):  # only root may give files away
        os.chown(temporary, before.st_uid, before.st_gid)
    return stat.S_IMODE(before.st_mode)


def _write_through(source: Path, path: Path) -> None:
    """Write the content of a file into what is at `path`."""
    descriptor = _descriptor(path)
    for stream in (sys.stdout, sys.stderr):
        if descriptor is not None and stream is not None:
            stream.flush()  # what was printed before comes first
    # A copy of the descriptor, because opening it anew would start over at the beginning of a file.
    opened = path.open("wb") if descriptor is None else os.fdopen(os.dup(descriptor), "wb")
    with source.open("rb") as content, opened as file:
        shutil.copyfileobj(content, file)


def checked_path(path: str | Path, what: str) -> Path:
    """Return a path that messages call `what` (for example "output") as an absolute one, links followed.

    Raises:
        InvalidInput: No file can have it: it is too long, its links lead in a circle, or it may not be entered.
    """
    try:
        resolved = Path(path).expanduser().resolve()
        with suppress(FileNotFoundError, NotADirectoryError):
            os.stat(f"{resolved}/.")  # noqa: PTH116 - a path object drops the dot, which asks whether it may be entered
        return resolved
    except (OSError, ValueError, RuntimeError) as error:
        text = repr(str(path))
        shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} ..."
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(f"The {what} {shown} is not a path that can be used ({reason}); choose another.") from None


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


def refusal(path: str | Path, error: Exception) -> str:
    """Return a message on why `path` could not be written."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return f"The disk is full: {path} could not be written. Free some space, or choose another disk for the output."
    return f"{path} could not be written ({getattr(error, 'strerror', None) or error})."


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
