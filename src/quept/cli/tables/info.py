"""The facts and the table of `quept info`."""

from collections.abc import Iterable, Iterator

from rich.console import Console

from quept.cli.console import clean, show_table, size
from quept.commands.info import ArtifactInfo
from quept.config import Recipe, Rule
from quept.models import Architecture
from quept.ops import describe


def show(info: ArtifactInfo, console: Console) -> None:
    """Print the facts about an artifact, and a table of its bit-widths."""
    recipe = info.manifest.recipe
    console.print(clean(info.directory), style="bold")
    for label, fact in _facts(info):
        console.print(f"  {label:20} {clean(fact)}")
    for note in info.notes:
        console.print(f"  note: {clean(note)}")
    rows = [
        (
            *(recipe.label(each.bits), size(each.bytes), size(each.resident_bytes), f"{each.error_ratio:.2f}"),
            *("-" if each.prediction_ratio is None else f"{each.prediction_ratio:.2f}", each.kept),
        )
        for each in info.precisions
    ]
    headings = ("bits", "packed size", "resident weights", "block error / rounding's", "KL / rounding's", "kept")
    show_table(console, "Bit-widths", headings, rows)
    console.print(f"Resident at once within {size(info.memory_budget)}: {_listed(info.resident_together)} bits.")


def _facts(info: ArtifactInfo) -> Iterator[tuple[str, str]]:
    manifest, recipe, architecture = info.manifest, info.manifest.recipe, info.architecture
    provenance = manifest.provenance
    yield "architecture", manifest.architecture
    yield "quantized weights", f"{info.weights:,} in {info.linears} linears"
    yield "weights' dtype", manifest.dtype
    yield "on disk, all bits", size(info.stored_bytes)
    yield "master", _master(recipe, manifest.dtype)
    yield "full precision", size(info.full_precision_bytes)
    groups = " ".join("{" + _listed(group) + "}" for group in recipe.groups.groups)
    yield "recipe", f"{recipe.name}, groups {groups}"
    yield "adapters", _adapters(recipe)
    yield "prepared by", _preparation(recipe)
    yield "activations", _activations(recipe)
    yield "quantized inputs", _inputs(architecture, recipe) if recipe.activations.bits else "none"
    yield "outside the blocks", _outer(architecture, recipe)
    yield "learned rounding", f"at {_listed(recipe.weight_spec.learned_rounding)} bits"
    yield "granularity", _granularity(recipe)
    for rule in recipe.rules:
        yield "rule", f"{rule.match}: {_changes(rule)}"
    yield "calibrated on", f"{architecture.task.describe_amount(recipe)} of {provenance.data}"
    yield "from", provenance.source
    yield "seed", str(provenance.seed)
    yield "kernels here", describe()
    yield "made with", ", ".join(f"{name} {version}" for name, version in provenance.versions.items())


def _listed(bits: Iterable[int]) -> str:
    """Return bit-widths as `2,3,4`, or `no`."""
    return ",".join(map(str, bits)) or "no"


def _master(recipe: Recipe, dtype: str) -> str:
    """Name what all bit-widths are derived from."""
    store = recipe.store
    if store.master_bits is None:
        return dtype
    shared = "row" if store.group_size is None else f"{store.group_size} inputs"
    return f"{store.master_bits} bits, one scale per {shared}; it stands for full precision"


def _granularity(recipe: Recipe) -> str:
    """Name the weights that share a scale."""
    grouped = [bits for bits in recipe.bits if bits in recipe.granularity.grouped_bits]
    if not grouped:
        return "per output channel"
    return f"groups of {recipe.granularity.group_size} inputs at {_listed(grouped)} bits, else per output channel"


def _activations(recipe: Recipe) -> str:
    """Name the rounding of activations."""
    settings = recipe.activations
    if not settings.bits:
        return "full precision"
    if settings.range == "tensor":
        return f"at {_listed(settings.bits)} bits, asymmetric, one learned range per tensor and bit-width"
    shared = "token" if settings.group_size is None else f"{settings.group_size} channels of a token"
    return f"at {_listed(settings.bits)} bits, symmetric, one range per {shared}"


def _inputs(architecture: Architecture, recipe: Recipe) -> str:
    """Name the tensors that are rounded in every block by the linears that read them."""
    products = ["queries, keys, probabilities and values of attention"] if recipe.activations.products else []
    return "; ".join([*(" ".join(readers) for readers in architecture.inputs), *products])


def _preparation(recipe: Recipe) -> str:
    """Name what was folded into the weights."""
    named = {"smoothing": "AWQ smoothing", "rotation": "QuaRot rotation", "reparameterization": "reparameterized norms"}
    return ", ".join(words for name, words in named.items() if getattr(recipe, name).enabled) or "nothing"


def _outer(architecture: Architecture, recipe: Recipe) -> str:
    """Name the bit-width of the layers in front of the blocks and behind them."""
    if not architecture.outer or recipe.outer_bits is None:
        return "full precision"
    activated = " weights and inputs" if recipe.activations.bits else " weights"
    return f"{recipe.outer_bits}-bit{activated} in {' '.join(architecture.outer)}"


def _adapters(recipe: Recipe) -> str:
    """Name the adapters."""
    adapter = recipe.adapter
    if adapter.kind == "none":
        return "none"
    kind = f"isolated {adapter.kind}" if adapter.isolated else adapter.kind
    return f"{kind}, rank {adapter.rank} per group, at {_listed(adapter.bits or recipe.bits)} bits"


def _changes(rule: Rule) -> str:
    """Name what a rule changes."""
    if rule.ignore:
        return "full precision"
    learned = None if rule.learned_rounding is None else f"learned rounding at {_listed(rule.learned_rounding)} bits"
    parts = (rule.bits and f"{rule.bits} bits", rule.group_size and f"groups of {rule.group_size} inputs", learned)
    return ", ".join(part for part in parts if part)
