"""The directory in which an artifact grows, block by block, until it is whole.

Everything is written to `<output>.partial`, each file under a temporary name first; when the last one stands, the
directory is renamed to `<output>`. So the output is there whole or not at all, and what a killed run leaves behind
is exactly the finished blocks, from which `--resume` goes on. Each is recorded with its SHA-256 as soon as it stands,
and checked when it is read again and when the artifact is sealed.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from quept.calibration.ledger import LEDGER, Ledger, compare, fingerprint_of, read_ledger
from quept.calibration.stream import STREAM_PREFIX
from quept.errors import CorruptArtifact, InvalidInput, QueptError
from quept.files import TEMPORARY, checked_path, explained, refusal, replacing
from quept.storage.artifact import is_block_shard
from quept.storage.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    is_artifact,
    read_by_transformers,
    read_manifest,
    record_of,
)
from quept.storage.tensors import read_note, read_shards, shards_of, write_shards

LOCK = "calibration.lock"


class Workspace:
    """An artifact in the making.

    A run resumes only work of the same fingerprint. `note` is told of a finished block that has to be trained again.
    """

    def __init__(self, output: str | Path, note: Callable[[str], None] = lambda text: None) -> None:
        self.output = checked_path(output, "output")
        if not str(output) or not self.output.name:
            raise InvalidInput(f"The output {str(output)!r} is not the name of a directory; choose another.")
        self.folder = checked_path(self.output.with_name(self.output.name + ".partial"), "output")
        self._lock = FileLock(self.folder / LOCK)
        self._created, self._note = False, note
        self._ledger = Ledger(fingerprint={}, files={})

    def check_free(self, *, resume: bool) -> None:
        """Raise `InvalidInput` if the output is taken, or unfinished work stands in the way of a fresh start."""
        with explained(self.output):
            taken = self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir()))
            if taken and not (resume and is_artifact(self.output)):
                raise InvalidInput(
                    f"The output {self.output} exists and is not an empty directory; choose another, or remove it."
                )
            # Not by name alone: what it holds may be somebody's, and must not be touched.
            marks = (LEDGER, LOCK, MANIFEST)
            if self.folder.exists() and not (self.folder.is_dir() and self._is_empty_or_has(marks)):
                raise InvalidInput(
                    f"{self.folder} is in the way: it holds no unfinished calibration. Move it, or choose another "
                    "output."
                )
            if self.folder.exists() and not resume:
                raise InvalidInput(f"An unfinished calibration is in {self.folder}; go on with --resume, or remove it.")

    def finished(self, fingerprint: Mapping[str, Any]) -> Manifest | None:
        """Return the manifest of the finished output, if there is one; `InvalidInput` if it is of another run."""
        if not is_artifact(self.output):
            return None
        manifest = read_manifest(self.output, verify=False)
        compare(fingerprint_of(manifest, self.output), fingerprint, self.output)
        return manifest

    def open(self, fingerprint: Mapping[str, Any]) -> None:
        """Start, or go on with unfinished work of the same fingerprint.

        Raises `InvalidInput` if the folder holds another calibration, or another process is at work in it;
        `CorruptArtifact` if it does not say which calibration it holds.
        """
        try:
            self._created = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            self._created = False
            raise InvalidInput(
                f"Another calibration is at work in {self.folder}; wait for it, or choose another output."
            ) from None
        except OSError as error:
            raise InvalidInput(refusal(self.folder, error)) from None
        try:
            before = read_ledger(self.folder)
            if before is not None:
                compare(before.fingerprint, fingerprint, self.folder)
            elif any(map(is_block_shard, self.folder.iterdir())):
                raise CorruptArtifact(
                    f"{self.folder} holds finished blocks, but no {LEDGER} that says which calibration they are of; "
                    "remove it and start again."
                )
            self._ledger = Ledger(fingerprint=dict(fingerprint), files={} if before is None else before.files)
            self._remove_leftovers()
            self._ledger.write(self.folder)
        except QueptError:
            self.abandon_if_empty()
            raise

    def has(self, stem: str) -> bool:
        """Return whether a part is finished and as it was written; one that was altered counts as missing."""
        names = {name for name in self._ledger.files if _is_of(name, stem)}
        for name in sorted(names):
            if not _is_as_recorded(self.folder / name, self._ledger.files[name]):
                self._note(
                    f"{self.folder / name} is missing or was altered since it was written; its block is trained again."
                )
                self._ledger = self._ledger.without(names)
                return False
        return bool(names)

    def read(self, stem: str) -> tuple[dict[str, Tensor], Any]:
        """Return the tensors of a finished part, and the note written with them."""
        try:
            shards = shards_of(self.folder, stem)
            return read_shards(shards), json.loads(read_note(shards[0]) or "null")
        except (CorruptArtifact, ValueError) as error:
            raise CorruptArtifact(f"{error} Remove {self.folder} and start again.") from None

    def write(self, stem: str, tensors: Mapping[str, Tensor], note: Any = None) -> None:
        """Finish a part: its tensors, and a note of JSON values."""
        paths = write_shards(self.folder, stem, tensors, note=None if note is None else json.dumps(note))
        self._record(paths)

    def write_files(self, files: Mapping[str, bytes]) -> None:
        """Write the artifact's files that hold no tensors, by their names in it."""
        paths = [self.folder / name for name in files]
        for path, content in zip(paths, files.values(), strict=True):
            with replacing(path) as temporary:
                temporary.write_bytes(content)
        self._record(paths)

    def checked_files(self) -> dict[str, FileRecord]:
        """Return records of the artifact's files.

        Raises `CorruptArtifact` for one that is not as it was written, `InvalidInput` for one that was put beside them.
        """
        for name, record in self._ledger.files.items():
            if not _is_as_recorded(self.folder / name, record):
                raise CorruptArtifact(
                    f"{self.folder / name} is missing or was altered since it was written. Go on with --resume, which "
                    "makes it again."
                )
        if strange := sorted(read_by_transformers(self.folder) - self._ledger.files.keys() - {LEDGER}):
            raise InvalidInput(
                f"{self.folder} holds {strange[0]}, which is not of this calibration. Move it, and go on with --resume."
            )
        return dict(self._ledger.files)

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest, and give the directory its name.

        From the moment the manifest stands, it says which calibration this is, and the ledger can go.
        """
        manifest.write(self.folder)
        try:
            (self.folder / LEDGER).unlink(missing_ok=True)
            self.release()
            if self.output.exists():
                self.output.rmdir()
            self.folder.rename(self.output)
        except OSError as error:
            raise QueptError(refusal(self.output, error)) from None

    def release(self) -> None:
        """Let other processes in."""
        with suppress(OSError):  # the folder may have been removed
            (self.folder / LOCK).unlink(missing_ok=True)
        self._lock.release()

    def abandon_if_empty(self) -> None:
        """After a failure: remove the folder if this run made it and no block is finished; let other processes in."""
        if not self._lock.is_locked:
            return
        self.release()
        if self._created and self.folder.is_dir() and not any(map(is_block_shard, self.folder.iterdir())):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _record(self, paths: Iterable[Path]) -> None:
        """Record files that have just been written; from now on they are finished."""
        try:
            records = {path.relative_to(self.folder).as_posix(): record_of(path) for path in paths}
        except OSError as error:
            raise QueptError(refusal(self.folder, error)) from None
        self._ledger = self._ledger.with_files(records)
        self._ledger.write(self.folder)

    def _remove_leftovers(self) -> None:
        """Remove what a killed process was writing: temporary files, streams, and shards without a record."""
        patterns = (f"*{TEMPORARY}", f"{STREAM_PREFIX}*", ".tmp*")  # the last are safetensors' own
        temporary = [path for pattern in patterns for path in self.folder.glob(pattern)]
        shards = [path for path in self.folder.glob("elastic-*.safetensors") if path.name not in self._ledger.files]
        try:
            for leftover in [*temporary, *shards]:
                leftover.unlink()
        except OSError as error:
            raise QueptError(refusal(leftover, error)) from None

    def _is_empty_or_has(self, names: Iterable[str]) -> bool:
        return not any(self.folder.iterdir()) or any((self.folder / name).exists() for name in names)


def _is_of(name: str, stem: str) -> bool:
    """Return whether a file is a shard of a part."""
    return name == f"{stem}.safetensors" or (name.startswith(f"{stem}-part") and name.endswith(".safetensors"))


def _is_as_recorded(path: Path, record: FileRecord) -> bool:
    try:
        return path.is_file() and record_of(path) == record
    except OSError:
        return False
