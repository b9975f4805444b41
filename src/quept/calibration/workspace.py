"""The directory in which an artifact grows, block by block, until it is whole.

Everything is written to `<output>.partial`, each file under a temporary name first; when the last one stands, the
directory is renamed to `<output>`. So the output is there whole or not at all, and what a killed run leaves behind
is exactly the finished blocks, from which `--resume` goes on.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from quept.calibration.stream import STREAM_PREFIX
from quept.errors import CorruptArtifact, InvalidInput, QueptError
from quept.files import TEMPORARY, refusal, replacing
from quept.storage.artifact import is_block_shard
from quept.storage.manifest import MANIFEST, FileRecord, Manifest, is_artifact, read_manifest, record_files
from quept.storage.tensors import read_note, read_shards, shards_of, write_shards

FINGERPRINT = "calibration.json"
LOCK = "calibration.lock"


class Workspace:
    """An artifact in the making.

    `fingerprint` is everything that determines the result; a run resumes only work of the same fingerprint.
    """

    def __init__(self, output: str | Path) -> None:
        self.output = Path(output).expanduser().resolve()
        if not str(output) or not self.output.name:
            raise InvalidInput(f"The output {str(output)!r} is not the name of a directory; choose another.")
        self.folder = self.output.with_name(self.output.name + ".partial")
        self._lock = FileLock(self.folder / LOCK)
        self._created = False

    def check_free(self, *, resume: bool) -> None:
        """Raise `InvalidInput` if the output is taken, or unfinished work stands in the way of a fresh start."""
        taken = self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir()))
        if taken and not (resume and is_artifact(self.output)):
            raise InvalidInput(
                f"The output {self.output} exists and is not an empty directory; choose another, or remove it."
            )
        # Not by name alone: what it holds may be somebody's, and must not be touched.
        marks = (FINGERPRINT, LOCK, MANIFEST)
        if self.folder.exists() and not (self.folder.is_dir() and self._is_empty_or_has(marks)):
            raise InvalidInput(
                f"{self.folder} is in the way: it holds no unfinished calibration. Move it, or choose another output."
            )
        if self.folder.exists() and not resume:
            raise InvalidInput(f"An unfinished calibration is in {self.folder}; go on with --resume, or remove it.")

    def finished(self, fingerprint: Mapping[str, Any]) -> Manifest | None:
        """Return the manifest of the finished output, if there is one; `InvalidInput` if it is of another run."""
        if not is_artifact(self.output):
            return None
        manifest = read_manifest(self.output, verify=False)
        _compare(manifest_fingerprint(manifest), fingerprint, self.output)
        return manifest

    def open(self, fingerprint: Mapping[str, Any]) -> None:
        """Start, or go on with unfinished work of the same fingerprint.

        Raises `InvalidInput` if the folder holds another calibration, or another process is at work in it.
        """
        try:
            self._created = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(refusal(self.folder, error)) from None
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self._created = False
            raise InvalidInput(
                f"Another calibration is at work in {self.folder}; wait for it, or choose another output."
            ) from None
        try:
            before = self._fingerprint()
            if before is not None:
                _compare(before, fingerprint, self.folder)
            for leftover in [*self.folder.glob(f"*{TEMPORARY}"), *self.folder.glob(f"{STREAM_PREFIX}*")]:
                leftover.unlink()
            if before is None:
                with replacing(self.folder / FINGERPRINT) as temporary:
                    temporary.write_text(json.dumps(fingerprint, sort_keys=True), encoding="utf-8")
        except QueptError:
            self.abandon_if_empty()
            raise

    def has(self, stem: str) -> bool:
        """Return whether a part is finished."""
        return bool(shards_of(self.folder, stem))

    def read(self, stem: str) -> tuple[dict[str, Tensor], Any]:
        """Return the tensors of a finished part, and the note written with them."""
        try:
            shards = shards_of(self.folder, stem)
            return read_shards(shards), json.loads(read_note(shards[0]) or "null")
        except (CorruptArtifact, ValueError) as error:
            raise CorruptArtifact(f"{error} Remove {self.folder} and start again.") from None

    def write(self, stem: str, tensors: Mapping[str, Tensor], note: Any = None) -> None:
        """Finish a part: its tensors, and a note of JSON values."""
        write_shards(self.folder, stem, tensors, note=None if note is None else json.dumps(note))

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest, and give the directory its name.

        From the moment the manifest stands, it says which calibration this is, and the fingerprint can go.
        """
        manifest.write(self.folder)
        (self.folder / FINGERPRINT).unlink(missing_ok=True)
        self.release()
        try:
            if self.output.exists():
                self.output.rmdir()
            self.folder.rename(self.output)
        except OSError as error:
            raise QueptError(refusal(self.output, error)) from None

    def files(self) -> dict[str, FileRecord]:
        """Return records of the artifact's files written so far."""
        return {name: record for name, record in record_files(self.folder).items() if name not in (FINGERPRINT, LOCK)}

    def release(self) -> None:
        """Let other processes in."""
        (self.folder / LOCK).unlink(missing_ok=True)
        self._lock.release()

    def abandon_if_empty(self) -> None:
        """After a failure: remove the folder if this run made it and no block is finished; let other processes in."""
        if not self._lock.is_locked:
            return
        self.release()
        if self._created and not any(map(is_block_shard, self.folder.iterdir())):
            shutil.rmtree(self.folder)

    def _is_empty_or_has(self, names: Iterable[str]) -> bool:
        return not any(self.folder.iterdir()) or any((self.folder / name).exists() for name in names)

    def _fingerprint(self) -> Mapping[str, Any] | None:
        """Return the fingerprint of the work in the folder; None if there is none yet."""
        path = self.folder / FINGERPRINT
        if path.is_file():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                before = None
            if not isinstance(before, dict):
                raise CorruptArtifact(f"{path} cannot be read; remove {self.folder} and start again.")
            return before
        return manifest_fingerprint(read_manifest(self.folder, verify=False)) if is_artifact(self.folder) else None


def manifest_fingerprint(manifest: Manifest) -> dict[str, Any]:
    """Return the facts that determined a finished artifact."""
    return {"recipe": manifest.recipe.model_dump(mode="json"), **manifest.provenance.model_dump(mode="json")}


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    if differing := sorted(key for key in now if before.get(key) != now[key]):
        raise InvalidInput(
            f"{where} belongs to another calibration: {', '.join(differing)} differ from this command's. Repeat the "
            "command that started it, or choose another output."
        )
