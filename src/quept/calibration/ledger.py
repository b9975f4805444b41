"""`calibration.json`: what an unfinished calibration is of, and what of it is finished.

The fingerprint is everything that determines the result. Each finished file has a record, which is written right after
the file: one without a record was not finished, one unlike its record was altered. A hash of its own content shows
that this file was not.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from quept.config import Value
from quept.errors import CorruptArtifact, InvalidInput
from quept.files import read_json, replacing
from quept.storage.manifest import SEAL, FileRecord, Manifest, is_artifact, read_manifest, sealed

LEDGER = "calibration.json"
NOT_DECISIVE = ("generation_config.json",)  # a file of the artifact that calibration does not read


class Ledger(Value):
    """The content of `calibration.json`."""

    version: Literal[2] = 2  # 1 held the fingerprint alone
    fingerprint: dict[str, Any]
    files: dict[str, FileRecord]

    def write(self, folder: Path) -> None:
        """Write `calibration.json` into a folder."""
        with replacing(folder / LEDGER) as temporary:
            temporary.write_text(json.dumps(sealed(self.model_dump(mode="json")), sort_keys=True), encoding="utf-8")

    def with_files(self, records: Mapping[str, FileRecord]) -> "Ledger":
        """Return the ledger with these records, in place of older ones of the same files."""
        return self.updated(files={**self.files, **records})

    def without(self, names: set[str]) -> "Ledger":
        """Return the ledger without the records of these files."""
        return self.updated(files={name: record for name, record in self.files.items() if name not in names})


def read_ledger(folder: Path) -> Ledger | None:
    """Return the ledger of a folder, or what its manifest says where the last step alone is missing; None without both.

    Raises `CorruptArtifact` for one that was altered, is half-written, or of another version of quept.
    """
    path = folder / LEDGER
    if not path.exists():
        if not is_artifact(folder):
            return None
        manifest = read_manifest(folder, verify=False)
        return Ledger(fingerprint=fingerprint_of(manifest, folder), files=manifest.files)
    try:
        data = read_json(path, "the record of an unfinished calibration")
    except InvalidInput:
        data = None
    if isinstance(data, dict) and "recipe" in data:
        raise CorruptArtifact(
            f"{path} is of a calibration that another version of quept began. Finish it with that version, or remove "
            f"{folder} and start again."
        )
    try:
        if not isinstance(data, dict) or sealed(data) != data:
            raise InvalidInput("it does not match its own hash")
        return Ledger.parse({key: value for key, value in data.items() if key != SEAL}, origin=str(path))
    except InvalidInput:
        raise CorruptArtifact(f"{path} was altered or is half-written; remove {folder} and start again.") from None


def fingerprint_of(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """Return the facts about a finished artifact in `folder` that determined it, as far as they are kept."""
    kept = (name for name in manifest.files if not name.endswith(".safetensors") and name not in NOT_DECISIVE)
    return {
        "recipe": manifest.recipe.model_dump(mode="json"),
        **manifest.provenance.model_dump(mode="json"),
        "config": read_json(folder / "config.json", "a model's configuration"),
        "files": {name: manifest.files[name].sha256 for name in kept if name != "config.json"},
    }


def compare(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raise `InvalidInput` that names what differs between the fingerprint of the work in `where` and this run's."""
    # A manifest says less than a ledger.
    if differing := sorted(_differences(before, {key: value for key, value in now.items() if key in before})):
        few = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        raise InvalidInput(
            f"{where} belongs to another calibration: {few} differ from this command's. Repeat the "
            "command that started it, or choose another output."
        )


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        if before != now:
            yield name
        return
    for key in before.keys() | now.keys():
        # None, too, is a value: only a key that both have is looked into.
        if key in before and key in now:
            yield from _differences(before[key], now[key], f"{name}.{key}" if name else key)
        else:
            yield f"{name}.{key}" if name else key
