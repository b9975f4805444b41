"""`quept info`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quept.cli.console import (
    JsonFile,
    MemoryBudget,
    Quiet,
    check_target,
    clean,
    out,
    parse_size,
    show_table,
    size,
    write_json,
)
from quept.cli.progress import display

if TYPE_CHECKING:
    from quept.config import Recipe
    from quept.models import Architecture


def info(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="An artifact.")],
    memory_budget: MemoryBudget = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Show what an artifact is: widths, sizes, block errors, where it came from.

    Beside the size of each width stands the memory that its packed weights take while it is resident, and which widths
    are resident at once within [bold]--memory-budget[/], the narrowest first.
    """
    check_target("--json", json_file)
    budget = None if memory_budget is None else parse_size(memory_budget)
    from quept.config import MAX_BITS
    from quept.layers.size import full_precision_bytes, packed_bytes, resident_bytes
    from quept.models import architecture_of
    from quept.ops import describe
    from quept.precision import elastic_linears
    from quept.storage import load

    with display(quiet, "opening the artifact"):
        model = load(directory)
    manifest = model.quept_manifest
    recipe, provenance = manifest.recipe, manifest.provenance
    architecture = architecture_of(manifest.architecture)
    stored = sum(record.bytes for record in manifest.files.values())
    parameters = sum(layer.numel for layer in elastic_linears(model).values())
    facts = [
        ("architecture", manifest.architecture),
        ("quantized weights", f"{parameters:,} in {len(elastic_linears(model))} linears"),
        ("weights' dtype", manifest.dtype),
        ("on disk, all widths", size(stored)),
        ("master", master(recipe, manifest.dtype)),
        ("full precision", size(full_precision_bytes(model, model.dtype))),
        ("recipe", f"{recipe.name}, groups {' '.join('{' + listed(group) + '}' for group in recipe.groups.groups)}"),
        ("adapters", adapters(recipe)),
        ("prepared by", preparation(recipe)),
        ("activations", activations(recipe)),
        ("quantized inputs", inputs(architecture, recipe) if recipe.activations.bits else "none"),
        ("outside the blocks", outer(architecture, recipe)),
        ("learned rounding", f"at {listed(recipe.weight_spec.learned_rounding)} bits"),
        (
            "granularity",
            granularity(recipe),
        ),
        (
            "calibrated on",
            f"{architecture.task.describe_amount(recipe)} of {provenance.data}",
        ),
        ("from", provenance.source),
        ("seed", str(provenance.seed)),
        ("kernels here", describe()),
        ("made with", ", ".join(f"{name} {version}" for name, version in provenance.versions.items())),
    ]
    console = out(quiet, json_file)
    console.print(clean(directory), style="bold")
    for label, fact in facts:
        console.print(f"  {label:20} {clean(fact)}")
    for note in notes(model):
        console.print(f"  note: {clean(note)}")
    widths = []
    for bits in recipe.bits:
        errors = [error for error in manifest.block_errors if error.bits == bits]
        # Ratios first: the last block's error may be of another kind than the others'.
        ratios = [error.calibrated / error.rounding if error.rounding else 1.0 for error in errors]
        widths.append(
            {
                "bits": bits,
                "bytes": packed_bytes(model, bits, model.dtype),
                "resident_bytes": resident_bytes(model, bits),
                "error_ratio": sum(ratios) / len(ratios) if ratios else 1.0,
            }
        )
    rows = [
        (
            recipe.label(int(width["bits"])),
            size(int(width["bytes"])),
            size(int(width["resident_bytes"])),
            f"{width['error_ratio']:.2f}",
        )
        for width in widths
    ]
    show_table(console, "Bit-widths", ("bits", "packed size", "resident weights", "block error / rounding's"), rows)
    budget = 2 * resident_bytes(model, MAX_BITS) if budget is None else budget
    together = resident_together({int(width["bits"]): int(width["resident_bytes"]) for width in widths}, budget)
    console.print(f"Resident at once within {size(budget)}: {listed(together)} bits.")
    write_json(
        json_file,
        {
            "directory": directory,
            "stored_bytes": stored,
            "widths": widths,
            "memory_budget": budget,
            "resident_together": together,
            "notes": notes(model),
            "manifest": manifest.model_dump(mode="json"),
        },
    )


def resident_together(sizes: dict[int, int], budget: int) -> list[int]:
    """The widths that fit into a budget side by side, the narrowest first."""
    kept, left = [], budget
    for bits in sorted(sizes):
        if sizes[bits] <= left:
            kept.append(bits)
            left -= sizes[bits]
    return kept


def listed(widths: Iterable[int]) -> str:
    """Bit-widths as `2,3,4`, or `no`."""
    return ",".join(map(str, widths)) or "no"


def notes(model: Any) -> list[str]:
    """What the transforms say of this model."""
    from quept.models import BlockContext, architecture_of
    from quept.transforms import transforms_of

    architecture = architecture_of(model.config.model_type)
    blocks = architecture.block_list(model)
    context = BlockContext.of(architecture, model, 0)
    return [note for each in transforms_of(model.quept_manifest.recipe) for note in each.notes(blocks[0], context)]


def master(recipe: "Recipe", dtype: str) -> str:
    """What all widths are derived from, in words."""
    store = recipe.store
    if store.master_bits is None:
        return dtype
    shared = "row" if store.group_size is None else f"{store.group_size} inputs"
    return f"{store.master_bits} bits, one scale per {shared}; it stands for full precision"


def granularity(recipe: "Recipe") -> str:
    """How many weights share a scale, in words."""
    grouped = [bits for bits in recipe.bits if bits in recipe.granularity.grouped_bits]
    if not grouped:
        return "per output channel"
    return f"groups of {recipe.granularity.group_size} inputs at {listed(grouped)} bits, else per output channel"


def activations(recipe: "Recipe") -> str:
    """How activations are rounded, in words."""
    settings = recipe.activations
    if not settings.bits:
        return "full precision"
    if settings.range == "tensor":
        return f"at {listed(settings.bits)} bits, asymmetric, one learned range per tensor and width"
    shared = "token" if settings.group_size is None else f"{settings.group_size} channels of a token"
    return f"at {listed(settings.bits)} bits, symmetric, one range per {shared}"


def inputs(architecture: "Architecture", recipe: "Recipe") -> str:
    """The tensors that are rounded in every block, as the linears that read them."""
    products = ["queries, keys, probabilities and values of attention"] if recipe.activations.products else []
    return "; ".join([*(" ".join(readers) for readers in architecture.inputs), *products])


def preparation(recipe: "Recipe") -> str:
    """What was folded into the weights, in words."""
    named = {"smoothing": "AWQ smoothing", "rotation": "QuaRot rotation", "reparameterization": "reparameterized norms"}
    return ", ".join(words for name, words in named.items() if getattr(recipe, name).enabled) or "nothing"


def outer(architecture: "Architecture", recipe: "Recipe") -> str:
    """The width of the layers in front of the blocks and behind them, in words."""
    if not architecture.outer or recipe.outer_bits is None:
        return "full precision"
    activated = " weights and inputs" if recipe.activations.bits else " weights"
    return f"{recipe.outer_bits}-bit{activated} in {' '.join(architecture.outer)}"


def adapters(recipe: "Recipe") -> str:
    """What adapters there are, in words."""
    adapter = recipe.adapter
    if adapter.kind == "none":
        return "none"
    kind = f"isolated {adapter.kind}" if adapter.isolated else adapter.kind
    return f"{kind}, rank {adapter.rank} per group, at {listed(adapter.bits or recipe.bits)} bits"
