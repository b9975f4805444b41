"""The files and the last lines of `quept allocate`, for each kind of result."""

from functools import singledispatch
from pathlib import Path

from rich.console import Console

from quept.cli.console import clean
from quept.cli.drawings import draw_front
from quept.cli.tables.planning import show_front, show_plan
from quept.commands import FoundPlan, PlanFront
from quept.errors import QueptError


@singledispatch
def write(found: object, directory: str, metric: str, output: Path, console: Console) -> None:
    """Write a result to `output` and print it; `metric` names what plans were measured by on the way to a plan."""
    raise NotImplementedError(type(found).__name__)


@write.register
def _plan(found: FoundPlan, directory: str, metric: str, output: Path, console: Console) -> None:
    found.plan.write(output)
    show_plan(found, metric, console)
    console.print(f"Wrote {output}. Next: quept evaluate {clean(directory)} --plan {output} --data TEXT")


@write.register
def _front(found: PlanFront, directory: str, metric: str, output: Path, console: Console) -> None:
    found.write(output)
    written = ["front.json"]
    try:
        written += draw_front(found, directory, output)
    except QueptError as error:  # plots need an extra; all else does not
        console.print(f"note: {error}")
    show_front(found, directory, console)
    console.print(f"Wrote {', '.join(written)} and {len(found.plans)} plans to {clean(str(output))}")
