"""`quept.json`, the manifest of an artifact: its recipe, its provenance and its files.

Format version 4. The directory of an artifact holds this manifest, transformers' configuration and tokenizer files, and
safetensors shards: the first with everything outside the blocks, then one per block (more if a block exceeds 5 GB). The
manifest lists every file with its size and SHA-256, and holds a SHA-256 of its own content. No other file is read.
"""

import hashlib
import json
import reprlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from quept.config import Bits, Recipe, Value
from quept.errors import CorruptArtifact, InvalidInput
from quept.files import checked_path, replacing, sha256

MANIFEST = "quept.json"
FORMAT_VERSION: Final = 4
READ_VERSIONS = range(1, FORMAT_VERSION + 1)
SEAL = "sha256"
# Files that transformers may read from a model directory; others, such as images, may lie beside them.
READ_SUFFIXES = {".json", ".jinja", ".model", ".py", ".safetensors", ".tiktoken", ".txt"}


class FileRecord(Value):
    """Size in bytes and SHA-256 of a file."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Provenance(Value):
    """Origin of an artifact: model, data, seed and software; nothing that depends on the time or place of the run."""

    source: str
    model_sha256: str
    data: str
    data_sha256: str
    seed: int
    device: str
    compute_dtype: str
    compiled: bool = False
    versions: dict[str, str]


class BlockError(Value):
    """Error of a block's outputs at one bit-width, rounded to nearest and calibrated, on equal held-out inputs.

    Whichever is better is kept: `weights` as they were learned or rounded to nearest, `ranges` of activations as they
    were learned or whole.
    """

    block: str
    bits: Bits
    rounding: float
    calibrated: float
    weights: Literal["learned", "rounding"] = "learned"
    ranges: Literal["learned", "whole"] = "learned"

    @property
    def is_baseline(self) -> bool:
        """Whether nothing of what was learned is kept."""
        return self.weights == "rounding"


class PredictionError(Value):
    """Divergence of the predictions from full precision's on held-out samples, in nats per prediction.

    `rounding` is that of the model with all blocks rounded to nearest, `calibrated` that of what is kept.
    """

    bits: Bits
    rounding: float
    calibrated: float

    @property
    def ratio(self) -> float | None:
        """Return the divergence relative to rounding's; None where rounding has none."""
        return self.calibrated / self.rounding if self.rounding else None


class Judgement(NamedTuple):
    """What is kept of a calibration: of each block at each bit-width, and what that makes of the predictions."""

    blocks: tuple[BlockError, ...]
    predictions: tuple[PredictionError, ...]

    def notes(self) -> Iterator[str]:
        """Yield a sentence for each bit-width at which nothing that was learned is kept."""
        for each in self.predictions:
            if all(block.is_baseline for block in self.blocks if block.bits == each.bits):
                yield (
                    f"At {each.bits} bits what was learned does not predict held-out samples better than plain "
                    "rounding, or does so by chance; rounding is kept there."
                )


class Manifest(Value):
    """The content of `quept.json`."""

    format: Literal["quept"] = "quept"
    version: Literal[1, 2, 3, 4] = FORMAT_VERSION
    architecture: str
    dtype: Literal["float32", "bfloat16", "float16"]
    recipe: Recipe
    provenance: Provenance
    block_errors: tuple[BlockError, ...]
    prediction_errors: tuple[PredictionError, ...] = ()
    files: dict[str, FileRecord]

    @model_validator(mode="after")
    def _fits_its_version(self) -> Self:
        if self.version == 1 and self.recipe.store.master_bits is not None:
            raise ValueError("recipe.store.master_bits is set, but format version 1 keeps weights in floats")
        if self.version >= 4 and "prediction_errors" not in self.model_fields_set:
            raise ValueError("prediction_errors: Field required, in format version 4")
        return self

    @property
    def blocks(self) -> int:
        """Number of blocks in the shards."""
        return sum("-part" not in name for name in self.shards()) - 1

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
                raise ValueError(f"the file name {name!r} leaves the directory")
            if not name.isprintable():
                raise ValueError(f"the file name {name!r} holds control characters")
        return files

    def shards(self) -> list[str]:
        """Return the names of the safetensors files, in order."""
        return sorted(name for name in self.files if name.endswith(".safetensors"))

    def write(self, directory: Path) -> None:
        """Write `quept.json` into a directory."""
        text = json.dumps(sealed(self.model_dump(mode="json")), indent=2, sort_keys=True) + "\n"
        with replacing(directory / MANIFEST) as temporary:
            temporary.write_text(text, encoding="utf-8")


def sealed(data: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest's content with its SHA-256: that of the content as JSON with sorted keys and without spaces."""
    said = {key: value for key, value in data.items() if key != SEAL}
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return {**said, SEAL: hashlib.sha256(canonical.encode()).hexdigest()}


def is_artifact(directory: str | Path) -> bool:
    """Return whether a directory holds an artifact, of any format version."""
    try:
        return (Path(directory) / MANIFEST).is_file()
    except OSError:  # no file can have this path
        return False


def record_files(directory: Path) -> dict[str, FileRecord]:
    """Return a record of every file below `directory` except the manifest, by relative name."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(directory).as_posix(): record_of(path) for path in paths}


def record_of(path: Path) -> FileRecord:
    """Return the record of a file."""
    return FileRecord(bytes=path.stat().st_size, sha256=sha256(path))


def read_manifest(directory: str | Path, *, verify: bool = True) -> Manifest:
    """Read and check `quept.json` and, with `verify`, the size and SHA-256 of every file that it lists.

    Raises:
        InvalidInput: There is no artifact in the directory.
        CorruptArtifact: The artifact is damaged or of an unknown format version.
    """
    checked_path(directory, "artifact")
    directory = Path(directory)
    path = directory / MANIFEST
    if not path.is_file():
        raise InvalidInput(
            f"{directory} is not a quept artifact: it has no {MANIFEST}. Give a directory written by 'quept calibrate'."
        )
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CorruptArtifact(f"{path} cannot be read ({error.strerror}); check its permissions.") from None
    except (ValueError, RecursionError) as error:
        raise CorruptArtifact(
            f"{path} is not valid JSON ({error}); calibrate again or copy the artifact again."
        ) from None
    version = data.get("version") if isinstance(data, dict) else None
    if type(version) is not int or version not in READ_VERSIONS:
        raise CorruptArtifact(
            f"{directory} has format version {reprlib.repr(version)}; this quept reads versions 1 to {FORMAT_VERSION}. "
            "Install a quept that matches, or calibrate again."
        )
    manifest = _understood(data, path)
    if unlisted := sorted(read_by_transformers(directory) - manifest.files.keys()):
        raise CorruptArtifact(
            f"{directory} holds {unlisted[0]}, which {MANIFEST} does not list; remove it, or copy the artifact again."
        )
    if "config.json" not in manifest.files:
        raise CorruptArtifact(f"{path} does not list config.json; copy the artifact again.")
    if verify:
        for name, record in manifest.files.items():
            path = directory / name
            try:
                _verify(path, record)
            except OSError as error:
                raise CorruptArtifact(
                    f"The artifact's file {path} cannot be read ({error.strerror}); check its permissions."
                ) from None
    return manifest


def _understood(data: dict[str, Any], path: Path) -> Manifest:
    sealing = data["version"] > 1
    said = {key: value for key, value in data.items() if not (sealing and key == SEAL)}
    try:
        manifest = Manifest.parse(said, origin=str(path))
    except InvalidInput as error:
        raise CorruptArtifact(f"{error}; calibrate again or copy the artifact again.") from None
    if sealing and data.get(SEAL) != sealed(said)[SEAL]:
        raise CorruptArtifact(f"{path} was altered: it does not match its own {SEAL}; copy the artifact again.")
    return manifest


def read_by_transformers(directory: Path) -> set[str]:
    """Return the files below a directory that transformers may read, by relative name."""
    paths = (path for path in directory.rglob("*") if path.suffix in READ_SUFFIXES and path.name != MANIFEST)
    return {path.relative_to(directory).as_posix() for path in paths}


def _verify(path: Path, record: FileRecord) -> None:
    if not path.is_file():
        raise CorruptArtifact(f"The artifact's file {path} is missing; copy the artifact again.")
    size = path.stat().st_size
    if size != record.bytes:
        raise CorruptArtifact(f"{path} has {size} bytes instead of {record.bytes}; copy the artifact again.")
    if sha256(path) != record.sha256:
        raise CorruptArtifact(f"{path} was altered: its SHA-256 is not the one in {MANIFEST}; copy the artifact again.")
