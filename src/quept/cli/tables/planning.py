"""Tables of sensitivities, plans and fronts."""

from collections.abc import Sequence
from os.path import commonpath

from rich.console import Console

from quept.cli.console import figure, show_table, size
from quept.commands.allocate import FoundPlan
from quept.commands.plan_front import PlanFront
from quept.search.budget import Measurement
from quept.search.table import SensitivityTable


def show_sensitivities(table: SensitivityTable, console: Console) -> None:
    """Print the sensitivity of each part at each bit-width."""
    bits = list(dict.fromkeys(each for errors in table.parts.values() for each in errors))
    shared = commonpath([path.replace(".", "/") for path in table.parts]).replace("/", ".")
    prefix = f"{shared}." if shared and shared not in table.parts else ""
    rows = [
        (path[len(prefix) :], *(f"{errors[each]:.1e}" if each in errors else "-" for each in bits))
        for path, errors in table.parts.items()
    ]
    heading = f"KL divergence in nats per prediction, {table.origin.rows:,} predictions"
    show_table(console, heading, (f"in {prefix}" if prefix else "part", *bits), rows)


def show_plan(found: FoundPlan, metric: str, console: Console) -> None:
    """Print the size of a plan, the number of linears at each bit-width, and the plans that were measured for it."""
    if found.tried:
        _show_measured(found.tried, metric, console)
    chosen = [16 if bits is None else bits for bits in found.plan.bits.values()]
    rows = [(str(bits), str(chosen.count(bits))) for bits in sorted(set(chosen), key=str)]
    heading = (
        f"{found.average_bits:.3f} bits per weight (mean of the bits {found.mean_bits:.2f}), packed model "
        f"{size(found.bytes)}, expected KL divergence {found.expected:.4g}"
    )
    show_table(console, heading, ("bits", "linears"), rows)
    if found.excess:
        console.print(
            "note: more plans are nearly alike than can be told apart; another one may be better, by a divergence of "
            f"{found.excess:.2g} at most."
        )


def show_front(front: PlanFront, directory: str, console: Console) -> None:
    """Print the metric of every plan of a front by size."""
    rows = [
        (f"{each.allocation.average_bits:.3f}", kind, size(each.allocation.bytes), figure(each.value))
        for kind, points in (("plan", front.plans), ("uniform", front.uniform))
        for each in points
    ]
    metric = front.metric[0].upper() + front.metric[1:]
    heading = f"{metric} of {directory} on {front.amount}; full precision {figure(front.full_precision)}"
    show_table(console, heading, ("bits per weight", "kind", "packed size", front.metric), sorted(rows))


def _show_measured(tried: Sequence[Measurement], metric: str, console: Console) -> None:
    rows = [(f"{each.allocation.average_bits:.3f}", size(each.allocation.bytes), f"{each.value:.5g}") for each in tried]
    show_table(console, "Plans that were measured; the last one is taken", ("bits", "packed size", metric), rows)
