"""Plans that are measured as they are: the smallest that is accurate enough, and the front of accuracy and size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quept.config import PrecisionPlan
from quept.errors import InvalidInput
from quept.search.allocation import Allocation, Problem
from quept.search.expansion import expand
from quept.search.sensitivity import divergence_of
from quept.search.target import SearchTarget

Measure = Callable[[PrecisionPlan], float]  # a plan over all linears to what it costs in accuracy: lower is better

RESOLUTION = 0.01  # bits per weight, to which the smallest budget is found


@dataclass(frozen=True)
class Measurement:
    """A plan, and what was measured of it."""

    allocation: Allocation
    value: float


def refined(
    target: SearchTarget, problem: Problem, limit: int, rounds: int, progress: Callable[[int], None] | None = None
) -> list[Measurement]:
    """Improve the plan for a limit by what it does to the model; the plans that were tried, the best one last.

    The first are the plan, the widest uniform one, that with its last linears at the next bit-width, and the next
    uniform one less what the divergence expanded around it can best do without. In every round the divergence is
    expanded around the best plan that it was not yet expanded around, and changes that are better by that expansion are
    measured: one, two, four, ..., all. `progress` is told rounds done.
    """
    starts = [problem.within(limit), *problem.uniform(limit), *problem.last_wider(limit)]
    starts += [problem.reduced(expand(target, above.plan), limit) for above in problem.uniform_above(limit)]
    tried: dict[str, Measurement] = {}

    def add(allocation: Allocation) -> None:
        name = str(allocation.plan.bits)
        if name not in tried:
            tried[name] = Measurement(allocation, divergence_of(target, allocation.plan))

    for start in starts:
        add(start)
    expanded: set[str] = set()
    for done in range(rounds):
        left = [name for name in tried if name not in expanded]
        if not left:
            break
        name = min(left, key=lambda each: tried[each].value)
        expanded.add(name)
        plan = tried[name].allocation.plan
        for proposal in problem.improved(plan, expand(target, plan), limit):
            add(proposal)
        if progress is not None:
            progress(done + 1)
    return sorted(tried.values(), key=lambda each: -each.value)


def smallest(problem: Problem, measure: Measure, most: float, *, resolution: float = RESOLUTION) -> list[Measurement]:
    """Find the smallest budget whose plan measures at most `most`, by bisection; every plan that was measured, in turn.

    The last one is the answer. Measurements need not fall evenly with the budget, so a smaller plan that would do as
    well can be missed; the answer's own measurement always holds. Raises `InvalidInput` if even the largest budget's
    plan measures more.
    """
    step = resolution * problem.units
    tried = [_measured(problem, problem.most, measure)]
    if not tried[0].value <= most:
        raise InvalidInput(
            f"No plan reaches {most:g}: the best that the allowed bit-widths give measures {tried[0].value:.6g}. Allow "
            "more bits, or raise the limit."
        )
    answer = tried[0]
    low, high = problem.least, problem.most
    tried.append(_measured(problem, low, measure))
    if tried[-1].value <= most:
        return tried
    while high - low > step:
        middle = (low + high) // 2
        found = _measured(problem, middle, measure, tried)
        tried.append(found)
        if found.value <= most:
            high, answer = problem.cost(found.allocation.plan), found
        else:
            low = middle
    return [*(each for each in tried if each is not answer), answer]


def front(problem: Problem, measure: Measure, limits: Sequence[int]) -> list[Measurement]:
    """Return the plans for some limits, in the problem's units, each measured; plans that repeat are left out."""
    found: list[Measurement] = []
    for limit in limits:
        allocation = problem.within(limit)
        if all(each.allocation.plan != allocation.plan for each in found):
            found.append(Measurement(allocation, measure(allocation.plan)))
    return found


def _measured(problem: Problem, limit: int, measure: Measure, known: Sequence[Measurement] = ()) -> Measurement:
    allocation = problem.within(limit)
    same = [each.value for each in known if each.allocation.plan == allocation.plan]
    return Measurement(allocation, same[0] if same else measure(allocation.plan))
