"""`quept.info`: the contents of an artifact."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quept.commands.opening import directory_of
from quept.config import MAX_BITS
from quept.layers.size import full_precision_bytes, packed_bytes, resident_bytes
from quept.models import Architecture, BlockContext, architecture_of
from quept.precision import elastic_linears
from quept.storage import load
from quept.storage.decisions import describe
from quept.storage.manifest import Manifest
from quept.transforms import transforms_of


@dataclass(frozen=True)
class BitsInfo:
    """One bit-width: bytes of the packed model and of resident weights, and what calibration gained.

    `error_ratio` is the blocks' error relative to rounding, `prediction_ratio` that of the predictions on held-out
    samples, None where it was not measured; `kept` says in words what is kept of what was learned.
    """

    bits: int
    bytes: int
    resident_bytes: int
    error_ratio: float
    prediction_ratio: float | None
    kept: str


@dataclass(frozen=True)
class ArtifactInfo:
    """The contents of an artifact.

    Attributes:
        directory: where it is.
        manifest: its manifest.
        architecture: its model's family.
        weights: number of quantized weights; they are in `linears` layers.
        stored_bytes: bytes on disk, of all bit-widths together.
        full_precision_bytes: bytes of the model before it was calibrated.
        precisions: figures of each bit-width, ascending.
        memory_budget: bytes for resident weights.
        resident_together: bit-widths that fit into that side by side, the lowest first.
        notes: sentences of its transforms about limits in this model.
    """

    directory: str
    manifest: Manifest
    architecture: Architecture
    weights: int
    linears: int
    stored_bytes: int
    full_precision_bytes: int
    precisions: tuple[BitsInfo, ...]
    memory_budget: int
    resident_together: tuple[int, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary for `json.dump`."""
        return {
            "directory": self.directory,
            "stored_bytes": self.stored_bytes,
            "widths": [asdict(each) for each in self.precisions],
            "memory_budget": self.memory_budget,
            "resident_together": list(self.resident_together),
            "notes": list(self.notes),
            "manifest": self.manifest.model_dump(mode="json"),
        }


def info(directory: str | Path, *, memory_budget: int | None = None) -> ArtifactInfo:
    """Describe an artifact: bit-widths, sizes, block errors, where it came from.

    Args:
        directory: the artifact.
        memory_budget: bytes for resident weights; None is twice those of 8 bits.

    Raises `InvalidInput` where there is no artifact, `CorruptArtifact` for a damaged one.
    """
    model = load(directory_of(directory))
    manifest: Manifest = model.quept_manifest
    precisions = tuple(_described(model, manifest, bits) for bits in manifest.recipe.bits)
    budget = 2 * resident_bytes(model, MAX_BITS) if memory_budget is None else memory_budget
    layers = elastic_linears(model).values()
    return ArtifactInfo(
        directory=str(directory),
        manifest=manifest,
        architecture=architecture_of(manifest.architecture),
        weights=sum(layer.numel for layer in layers),
        linears=len(layers),
        stored_bytes=sum(record.bytes for record in manifest.files.values()),
        full_precision_bytes=full_precision_bytes(model, model.dtype),
        precisions=precisions,
        memory_budget=budget,
        resident_together=resident_together({each.bits: each.resident_bytes for each in precisions}, budget),
        notes=tuple(_notes(model, manifest)),
    )


def resident_together(sizes: Mapping[int, int], budget: int) -> tuple[int, ...]:
    """Return the bit-widths whose sizes in bytes fit into a budget side by side, the lowest first."""
    kept, left = list[int](), budget
    for bits in sorted(sizes):
        if sizes[bits] <= left:
            kept.append(bits)
            left -= sizes[bits]
    return tuple(kept)


def _described(model: Any, manifest: Manifest, bits: int) -> BitsInfo:
    errors = [error for error in manifest.block_errors if error.bits == bits]
    # Ratios first: the last block's error may be of another kind than the others'.
    ratios = [error.calibrated / error.rounding if error.rounding else 1.0 for error in errors]
    ratio = sum(ratios) / len(ratios) if ratios else 1.0
    predictions = next((each.ratio for each in manifest.prediction_errors if each.bits == bits), None)
    sizes = packed_bytes(model, bits, model.dtype), resident_bytes(model, bits)
    return BitsInfo(bits, *sizes, ratio, predictions, describe(errors, bits))


def _notes(model: Any, manifest: Manifest) -> list[str]:
    """Return the transforms' sentences about this model."""
    architecture = architecture_of(manifest.architecture)
    blocks = architecture.block_list(model)
    context = BlockContext.of(architecture, model, 0, manifest.recipe)
    return [note for each in transforms_of(manifest.recipe) for note in each.notes(blocks[0], context)]
