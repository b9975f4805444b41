"""`quept.plan_front`: the best accuracy at each size, measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quept.commands.allocate import PlanOptions, open_problem
from quept.commands.evaluator import PlanEvaluator
from quept.errors import InvalidInput
from quept.files import write_json
from quept.search.budget import Measurement, front
from quept.search.table import SensitivityTable


@dataclass(frozen=True)
class PlanFront:
    """Plans within rising budgets and uniform plans, each measured.

    Attributes:
        metric: the name of what was measured; lower is better.
        amount: the amount of data, in words.
        full_precision: the metric at full precision.
        plans: mixed plans, by rising size.
        uniform: uniform plans, by rising bits.
        table: the sensitivities that they were planned with.
    """

    metric: str
    amount: str
    full_precision: float
    plans: tuple[Measurement, ...]
    uniform: tuple[Measurement, ...]
    table: SensitivityTable

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary for `json.dump`."""
        measured = {
            kind: [{**each.allocation.to_json(), "measured": each.value} for each in points]
            for kind, points in (("plans", self.plans), ("uniform", self.uniform))
        }
        return {"metric": self.metric, "full_precision": self.full_precision, **measured}

    def write(self, directory: Path) -> None:
        """Write `front.json`, and the plans as `plan-<average bits>.json`, into an existing directory."""
        for each in self.plans:
            each.allocation.plan.write(directory / f"plan-{each.allocation.average_bits:.3f}.json")
        write_json(directory / "front.json", self.to_json())


def plan_front(
    model: Any, table: SensitivityTable | str | Path, evaluator: PlanEvaluator, *, budgets: int = 12, **options: Any
) -> PlanFront:
    """Plan for evenly spaced budgets from the smallest plan to the largest, and measure each plan.

    Args:
        model: the directory of an artifact, or a model by `quept.load`.
        table: its sensitivities.
        evaluator: measures plans.
        budgets: number of budgets, two at least; plans that repeat are left out.
        options: those of `PlanOptions`.

    Raises `InvalidInput` for a table of another model, and for fewer than two budgets.
    """
    if budgets < 2:
        raise InvalidInput(f"budgets is {budgets}, but must be 2 or more: the smallest plan's and the largest's.")
    if not isinstance(table, SensitivityTable):
        table = SensitivityTable.read(table)
    problem = open_problem(model, table, PlanOptions(**options))
    low, high = problem.least, problem.most
    steps = [low + (high - low) * step // (budgets - 1) for step in range(budgets)]
    full = evaluator.quality(None)
    plans = front(problem, evaluator.quality, steps)
    uniform = [Measurement(each, evaluator.quality(each.plan)) for each in problem.uniform_plans()]
    return PlanFront(evaluator.metric, evaluator.amount, full, tuple(plans), tuple(uniform), table)
