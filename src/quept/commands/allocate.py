"""`quept.allocate`: a precision plan within a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quept.commands.evaluator import PlanEvaluator
from quept.commands.opening import manifest_of
from quept.commands.sensitivity import IN_MEMORY
from quept.config import parse_bits
from quept.errors import InvalidInput
from quept.formats.dtypes import DTYPES
from quept.models import architecture_of
from quept.models.task import Note
from quept.search.allocation import Allocation, Problem
from quept.search.budget import Measurement, refined, smallest
from quept.search.constraints import Constraints
from quept.search.cost import Budget, Costs, Count
from quept.search.sensitivity import divergence_of
from quept.search.table import SensitivityTable, model_digest
from quept.storage import read_manifest
from quept.storage.artifact import open_skeleton


@dataclass(frozen=True)
class PlanOptions:
    """The rules of planning.

    Attributes:
        count: what an average is over: bytes of the weights, or layers, each of them alike.
        bits: bit-widths to choose from, as in `2-8` or `[2, 4, 16]`, 16 for full precision; None is all that there are.
        fixed: bit-widths of linears by path or pattern.
        free: let linears that read the same tensor differ, which engines that fuse them cannot run.
        pairs: heed what linears add to one another; otherwise the sum of sensitivities is made least, exactly.
    """

    count: Count = "bytes"
    bits: str | Sequence[int] | None = None
    fixed: Mapping[str, int] = field(default_factory=dict)
    free: bool = False
    pairs: bool = True

    @property
    def allowed(self) -> tuple[int, ...] | None:
        """The bit-widths to choose from as numbers; None is all that there are."""
        if isinstance(self.bits, str):
            return parse_bits(self.bits)
        return None if self.bits is None else tuple(self.bits)


@dataclass(frozen=True)
class FoundPlan(Allocation):
    """A plan, and the plans that were measured on the way to it; the last of these is the plan itself.

    `instead` is set where a uniform bit-width measured better than the plan that was found: that bit-width. The plan is
    the uniform one then.
    """

    tried: tuple[Measurement, ...] = ()
    instead: int | None = None

    @classmethod
    def of(cls, allocation: Allocation, tried: Sequence[Measurement] = (), instead: int | None = None) -> "FoundPlan":
        """Return an allocation with the plans that were tried."""
        return cls(**vars(allocation), tried=tuple(tried), instead=instead)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary for `json.dump`."""
        tried = [{**each.allocation.to_json(), "measured": each.value} for each in self.tried]
        return {**super().to_json(), "plan": self.plan.to_json(), "tried": tried, "uniform_instead": self.instead}


def allocate(
    model: Any,
    table: SensitivityTable | str | Path,
    *,
    average_bits: float | None = None,
    max_bytes: int | None = None,
    max_kl: float | None = None,
    max_perplexity: float | None = None,
    refine: int = 0,
    evaluator: PlanEvaluator | None = None,
    measured: bool = True,
    note: Note = lambda text: None,
    **options: Any,
) -> FoundPlan:
    """Return the plan with the least expected divergence within one of four limits.

    A plan for a budget is measured beside every uniform bit-width within it, and the best of these is returned.

    Args:
        model: the directory of an artifact, or a model by `quept.load`.
        table: its sensitivities.
        average_bits: bits per weight, scales and zero points included; with `count="layers"` the mean of the bits.
        max_bytes: bytes of the packed model, embeddings included.
        max_kl: measured KL divergence; the smallest plan found that keeps it.
        max_perplexity: measured perplexity; the smallest plan found that keeps it.
        refine: rounds in which the plan for a budget is improved by measuring others.
        evaluator: measures plans; None measures on the data of the table, where that is still at hand.
        measured: False trusts the table, and reads no weights.
        note: told where a plan is not measured, and where a uniform bit-width is better.
        options: those of `PlanOptions`.

    Raises `InvalidInput` for a table of another model, and for a limit that no plan keeps.
    """
    limits = (average_bits, max_bytes, max_kl, max_perplexity)
    if sum(limit is not None for limit in limits) != 1:
        raise InvalidInput("Give one of average_bits, max_bytes, max_kl and max_perplexity: what the plan is for.")
    problem = open_problem(model, table, PlanOptions(**options))
    if average_bits is None and max_bytes is None:
        if refine:
            raise InvalidInput("refine improves a plan for one budget; use it with average_bits or max_bytes.")
        return _smallest(problem, _needed(evaluator), max_kl, max_perplexity)
    budget = Budget(average_bits, max_bytes, problem.count)
    chosen = problem.solve(budget)
    if not refine:
        if measured and evaluator is None:
            evaluator = table_evaluator(model, table, note=note)
        if not measured or evaluator is None:
            return FoundPlan.of(chosen)
        return _best(chosen, problem.uniform_plans_within(problem.limit(budget)), evaluator, note)
    measuring = _needed(evaluator)
    report = measuring.progress
    tried = refined(
        measuring.target(), problem, problem.limit(budget), refine, lambda done: report("rounds", done, refine)
    )
    return FoundPlan.of(tried[-1].allocation, tried)


def table_evaluator(
    model: Any, table: SensitivityTable | str | Path, data: str | Path | None = None, *, note: Note, **how: Any
) -> PlanEvaluator | None:
    """Open data to measure plans on, by default what a table was measured on; None, noted, if that is not at hand.

    `how` are further arguments of `PlanEvaluator`. Raises `InvalidInput` for `data` that cannot be read.
    """
    if data is not None:
        return PlanEvaluator(model, data, note=note, **how)
    if not isinstance(table, SensitivityTable):
        table = SensitivityTable.read(table)
    missing = "it was in memory" if table.origin.data == IN_MEMORY else None
    if missing is None:
        try:
            return PlanEvaluator(model, table.origin.data, note=note, **how)
        except InvalidInput as error:
            missing = str(error).removesuffix(".")
    note(
        f"The plan is not measured beside uniform bit-widths, since the table's data is not at hand: {missing}. Give "
        "data to measure it on."
    )
    return None


def _best(chosen: Allocation, uniform: Sequence[Allocation], evaluator: PlanEvaluator, note: Note) -> FoundPlan:
    """Return the best of a plan and uniform ones, by measuring them."""
    target, tried = evaluator.target(), list[Measurement]()
    for each in (chosen, *uniform):
        tried.append(Measurement(each, divergence_of(target, each.plan)))
        evaluator.progress("plans", len(tried), 1 + len(uniform))
    best = min(tried, key=lambda each: each.value)  # of equals, the plan
    if best is tried[0]:
        return FoundPlan.of(chosen, [*tried[1:], best])
    instead = round(best.allocation.mean_bits)
    note(
        f"Uniform {instead} bits measure better than the plan that was found, a divergence of {best.value:.4g} instead "
        f"of {tried[0].value:.4g}: the plan is uniform."
    )
    return FoundPlan.of(best.allocation, [*(each for each in tried if each is not best), best], instead)


def open_problem(model: Any, table: SensitivityTable | str | Path, options: PlanOptions) -> Problem:
    """Return the table and the rules, checked against the artifact, as the problem to solve."""
    if options.count not in ("bytes", "layers"):
        raise InvalidInput(f"--count is {options.count!r}; choose bytes or layers.")
    manifest = read_manifest(model, verify=False) if isinstance(model, str | Path) else manifest_of(model)
    origin = "The table" if isinstance(table, SensitivityTable) else str(table)
    if not isinstance(table, SensitivityTable):
        table = SensitivityTable.read(table)
    table.check_model(model_digest(manifest), origin)
    if isinstance(model, str | Path):
        model = open_skeleton(model, manifest)
    constraints = Constraints(
        allowed=options.allowed,
        fixed=options.fixed,
        together=() if options.free else architecture_of(manifest.architecture).shared_input_groups(model),
    )
    return Problem(table, Costs.of(model, DTYPES[manifest.dtype]), constraints, options.count, pairs=options.pairs)


def _smallest(
    problem: Problem, evaluator: PlanEvaluator, max_kl: float | None, max_perplexity: float | None
) -> FoundPlan:
    """Return the smallest plan found that measures at most a divergence, or a perplexity."""
    if max_kl is not None:
        target = evaluator.target()
        tried = smallest(problem, lambda plan: divergence_of(target, plan), max_kl)
    else:
        assert max_perplexity is not None
        if evaluator.metric != "perplexity":
            raise InvalidInput(
                f"--max-perplexity {max_perplexity:g} limits a perplexity, but this model's plans are measured by "
                f"{evaluator.metric}: use --max-kl or --front."
            )
        tried = smallest(problem, evaluator.quality, max_perplexity)
    return FoundPlan.of(tried[-1].allocation, tried)


def _needed(evaluator: PlanEvaluator | None) -> PlanEvaluator:
    if evaluator is None:
        raise InvalidInput("Plans are measured for this, and that needs text or images: give an evaluator.")
    return evaluator
