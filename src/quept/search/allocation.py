"""From sensitivities to a plan: which width each linear gets, so that a budget is kept and the least accuracy lost.

What a plan is expected to cost in accuracy is the sum of its parts' sensitivities, measured one at a time: dynamic
programming finds the least, exactly. Where the table knows what linears add to one another, the sum with that is made
less step by step, from there and from the widest uniform plan. Either is an estimate: what a plan does cost is measured
on the plan (`quept.search.budget`).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np

from quept.config import FULL, PlannedBits, Precision, PrecisionPlan
from quept.errors import InvalidInput
from quept.search.cost import Budget, Costs, Count
from quept.search.expansion import Expansion
from quept.search.knapsack import Infeasible, Option, choose
from quept.search.quadratic import Floats, Integers, PairedProblem
from quept.search.table import SensitivityTable


@dataclass(frozen=True)
class Constraints:
    """What a plan must keep to.

    Attributes:
        allowed: widths to choose from; None is all that the artifact has. 16 is full precision.
        fixed: widths of linears by path or pattern, of which the last that names a linear counts.
        together: linears that must have one width.
    """

    allowed: tuple[int, ...] | None = None
    fixed: Mapping[str, int] = field(default_factory=dict)
    together: Sequence[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Allocation:
    """A plan, the divergence it is expected to have, in nats per row, and what it takes.

    `average_bits` counts bits in storage by weights, `mean_bits` is the mean of the widths over the linears. `excess`
    is above 0 where more plans were nearly alike than could be told apart: by how much, at most, the sum of
    sensitivities is above the least.
    """

    plan: PrecisionPlan
    expected: float
    average_bits: float
    mean_bits: float
    bytes: int
    excess: float = 0.0


@dataclass(frozen=True)
class _Group:
    """Linears that take one width, and what they cost at each that they may have."""

    paths: tuple[str, ...]
    options: Mapping[int, Option]


class Problem:
    """One model, one table, one set of constraints: solved for any number of budgets."""

    def __init__(
        self,
        table: SensitivityTable,
        costs: Costs,
        constraints: Constraints | None = None,
        count: Count = "bytes",
        pairs: bool = True,
    ) -> None:
        """`pairs=False` takes the sensitivities for independent of one another, whatever the table knows of pairs.

        Raises `InvalidInput` where the table lacks a linear or width, or constraints contradict each other.
        """
        self.costs, self.count = costs, count
        constraints = constraints or Constraints()
        fixed = _fixed(constraints.fixed, costs.bits)
        self.groups = [
            _Group(
                paths, {bits: self._option(table, paths, bits) for bits in _widths(paths, constraints, fixed, costs)}
            )
            for paths in _grouped(costs.bits, constraints.together)
        ]
        self.widths = tuple(sorted({bits for group in self.groups for bits in group.options}))
        self._errors = _filled(self, lambda group, bits: group.options[bits].error)
        self._spent = _filled(self, lambda group, bits: group.options[bits].cost, empty=-1.0).astype(np.int64)
        self._pairs: Floats | None = None
        if pairs and table.pairs:
            self._pairs = self._paired(table.columns, table.products())
            self._errors = self._errors + self._within_groups(table.columns, table.products())

    @property
    def least(self) -> int:
        """The smallest cost that a plan can have, in the problem's units."""
        return sum(min(option.cost for option in group.options.values()) for group in self.groups)

    @property
    def most(self) -> int:
        """The largest cost that a plan can have."""
        return sum(max(option.cost for option in group.options.values()) for group in self.groups)

    @property
    def units(self) -> int:
        """What one bit on average costs, in the problem's units: the weights, or the linears."""
        return sum(self.costs.weights.values()) if self.count == "bytes" else len(self.costs.weights)

    def limit(self, budget: Budget) -> int:
        """A budget in the problem's units: bits in storage, or widths added up."""
        if budget.max_bytes is not None:
            return (budget.max_bytes - self.costs.outside) * 8
        assert budget.average_bits is not None
        return math.floor(budget.average_bits * self.units + 1e-6)

    def solve(self, budget: Budget) -> Allocation:
        """The plan with the least expected divergence within a budget.

        Raises `InvalidInput`, which names the smallest budget that is possible, if there is none.
        """
        try:
            return self.within(self.limit(budget))
        except Infeasible as error:
            raise InvalidInput(self._too_small(budget, error.least)) from None

    def within(self, limit: int) -> Allocation:
        """The same for a limit in the problem's units; raises `Infeasible`."""
        choice, excess = self._alone(self._errors, limit)
        if self._pairs is None:
            return replace(self._allocated(choice), excess=excess)
        problem = PairedProblem(self._spent, self._errors, self._pairs)
        starts = [choice, *self._uniform(limit)]
        return self._allocated(min((problem.improved(start, limit) for start in starts), key=problem.error))

    def improved(self, plan: PrecisionPlan, expansion: Expansion, limit: int) -> list[Allocation]:
        """Plans ever further from one that keeps the limit, each better by what the expansion around it says.

        An expansion holds near where it was made: these are the plans after one change, two, four, ..., and all.
        """
        errors = self._grouped_errors(expansion)
        pairs = self._paired(list(expansion.columns), expansion.products)
        path = PairedProblem(self._spent, errors, pairs).path(self._chosen(plan), limit)
        last = len(path) - 1
        return [self._allocated(path[changes]) for changes in (*_doubling(last), last) if changes]

    def reduced(self, expansion: Expansion, limit: int) -> Allocation:
        """The plan within a limit that loses least if every change costs what the expansion says of it alone."""
        choice, excess = self._alone(self._grouped_errors(expansion), limit)
        return replace(self._allocated(choice), excess=excess)

    def last_wider(self, limit: int) -> list[Allocation]:
        """The widest uniform plan within a limit with as many of the last groups as fit at the next width.

        Nothing that was calibrated at the lower width comes behind those. A list of one, or empty.
        """
        for choice in self._uniform(limit):
            if choice[0] + 1 == len(self.widths) or (self._spent[:, choice[0] + 1] < 0).any():
                return []
            added = self._spent[:, choice[0] + 1] - self._spent[:, choice[0]]
            room = limit - int(self._spent[:, choice[0]].sum())
            wider = choice + (np.cumsum(added[::-1])[::-1] <= room)
            return [self._allocated(wider)]
        return []

    def uniform_plans(self) -> list[Allocation]:
        """The uniform plans that the constraints allow, by rising width."""
        every = np.flatnonzero((self._spent >= 0).all(0))
        return [self._allocated(np.full(len(self.groups), place)) for place in every]

    def uniform(self, limit: int) -> list[Allocation]:
        """The widest uniform plan within a limit, if the constraints allow one: a list of one, or empty."""
        return [self._allocated(choice) for choice in self._uniform(limit)]

    def uniform_above(self, limit: int) -> list[Allocation]:
        """The narrowest uniform plan that a limit has no room for: a list of one, or empty."""
        return [each for each in self.uniform_plans() if self.cost(each.plan) > limit][:1]

    def allocation(self, plan: PrecisionPlan) -> Allocation:
        """What a plan over all linears is expected to cost; one that breaks a constraint raises `InvalidInput`."""
        return self._allocated(self._chosen(plan))

    def cost(self, plan: PrecisionPlan) -> int:
        """What a plan over all linears costs, in the problem's units."""
        return int(self._spent[np.arange(len(self.groups)), self._chosen(plan)].sum())

    def _alone(self, errors: Floats, limit: int) -> tuple[Integers, float]:
        """The best choice where every option has an error of its own, and how far it may be from the least."""
        places = [np.flatnonzero(row >= 0) for row in self._spent]
        items = [
            [Option(int(self._spent[item, place]), float(errors[item, place])) for place in each]
            for item, each in enumerate(places)
        ]
        choice = choose(items, limit)
        chosen = [each[position] for each, position in zip(places, choice.positions, strict=True)]
        return np.array(chosen), choice.excess

    def _uniform(self, limit: int) -> list[Integers]:
        every = (self._spent >= 0).all(0)
        fitting = [place for place in np.flatnonzero(every) if self._spent[:, place].sum() <= limit]
        return [np.full(len(self.groups), fitting[-1])] if fitting else []

    def _chosen(self, plan: PrecisionPlan) -> Integers:
        """The place of every group's width in a plan."""
        assigned = {path: _plain_width(planned) for path, planned in plan.assigned(self.costs.bits).items()}
        places = []
        for group in self.groups:
            found = {assigned.get(path, FULL) for path in group.paths}
            if len(found) > 1 or not found <= group.options.keys():
                raise InvalidInput(
                    f"The plan has {', '.join(group.paths)} at {' and '.join(map(str, sorted(found)))} bits, which the "
                    "constraints do not allow."
                )
            places.append(self.widths.index(found.pop()))
        return np.array(places)

    def _allocated(self, choice: Integers) -> Allocation:
        widths: dict[str, int] = {}
        for group, place in zip(self.groups, choice.tolist(), strict=True):
            widths.update(dict.fromkeys(group.paths, self.widths[place]))
        planned: dict[str, PlannedBits] = {
            path: None if width == FULL else width for path, width in self.costs.completed(widths).items()
        }
        pairs = np.zeros((*self._errors.shape, *self._errors.shape)) if self._pairs is None else self._pairs
        bits = sum(self.costs.bits[path][width] for path, width in widths.items())
        return Allocation(
            PrecisionPlan(planned),
            PairedProblem(self._spent, self._errors, pairs).error(choice),
            self.costs.average_bits(bits),
            sum(widths.values()) / len(widths),
            self.costs.model_bytes(bits),
        )

    def _grouped_errors(self, expansion: Expansion) -> Floats:
        """The first-order and own second-order change of every option of an expansion."""
        errors = expansion.errors()
        return _filled(
            self, lambda group, bits: sum(errors[path].get(str(bits), 0.0) for path in group.paths)
        ) + self._within_groups(list(expansion.columns), expansion.products)

    def _paired(self, columns: Sequence[tuple[str, str]], products: Floats) -> Floats:
        """What options of different groups add, `(groups, widths, groups, widths)`."""
        members = self._members(columns)
        shape = (*self._errors.shape, *self._errors.shape)
        pairs = (members @ products @ members.T).reshape(shape)
        groups = np.arange(len(self.groups))
        pairs[groups, :, groups, :] = 0
        return pairs

    def _within_groups(self, columns: Sequence[tuple[str, str]], products: Floats) -> Floats:
        """What the linears of a group add to one another, `(groups, widths)`."""
        members = self._members(columns)
        others: Floats = products - np.diag(np.diagonal(products))
        return np.asarray(((members @ others) * members).sum(1).reshape(self._errors.shape))

    def _members(self, columns: Sequence[tuple[str, str]]) -> Floats:
        """Which columns an option of a group is made of: ones and zeros, `(groups x widths, columns)`."""
        place = {column: index for index, column in enumerate(columns)}
        members = np.zeros((len(self.groups) * len(self.widths), len(columns)))
        for item, group in enumerate(self.groups):
            for bits in group.options.keys() - {FULL}:
                row = item * len(self.widths) + self.widths.index(bits)
                members[row, [place[path, str(bits)] for path in group.paths]] = 1
        return members

    def _option(self, table: SensitivityTable, paths: Iterable[str], bits: int) -> Option:
        paths = list(paths)
        cost = sum(self.costs.bits[path][bits] if self.count == "bytes" else bits for path in paths)
        return Option(cost, sum(_error(table, path, bits) for path in paths))

    def _too_small(self, budget: Budget, least: int) -> str:
        if budget.max_bytes is not None:
            return (
                f"A size of {budget.max_bytes:,} bytes is too small: the smallest that the allowed widths can reach is "
                f"{self.costs.model_bytes(least):,} bytes, of which {self.costs.outside:,} are not quantized."
            )
        in_layers = self.count == "layers"
        reached = least / len(self.costs.weights) if in_layers else self.costs.average_bits(least)
        smallest = math.ceil(reached * 10_000) / 10_000
        return (
            f"An average of {budget.average_bits:g} bits is too small: the smallest that the allowed widths can reach "
            f"is {smallest:g}" + ("." if in_layers else ", scales and zero points included.")
        )


def _doubling(most: int) -> list[int]:
    """1, 2, 4, ..., below `most`."""
    return [1 << power for power in range(most.bit_length()) if 1 << power < most]


def _error(table: SensitivityTable, path: str, bits: int) -> float:
    """The sensitivity of a linear at a width; none at full precision."""
    errors = table.parts.get(path)
    if errors is None:
        raise InvalidInput(f"The sensitivity table lacks the linear {path}; measure again with quept sensitivity.")
    if bits == FULL:
        return 0.0
    if str(bits) not in errors:
        raise InvalidInput(f"The sensitivity table lacks {bits} bits of {path}; measure again with quept sensitivity.")
    return errors[str(bits)]


def _filled(problem: Problem, value: Callable[[_Group, int], float], empty: float = 0.0) -> Floats:
    """A number for every option of every group, `(groups, widths)`."""
    return np.array(
        [
            [value(group, bits) if bits in group.options else empty for bits in problem.widths]
            for group in problem.groups
        ]
    )


def _grouped(paths: Iterable[str], together: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """All linears in order, each alone or with those it must agree with."""
    of = {path: group for group in together for path in group}
    return list(dict.fromkeys(of.get(path, (path,)) for path in paths))


def _fixed(fixed: Mapping[str, int], linears: Mapping[str, Mapping[int, int]]) -> dict[str, int]:
    """The fixed widths by path."""
    found: dict[str, int] = {}
    for pattern, bits in fixed.items():
        named = [path for path in linears if fnmatchcase(path, pattern)]
        if not named:
            raise InvalidInput(
                f"There is no linear {pattern!r} to fix; the model has for example {sorted(linears)[:3]}. Patterns are "
                "written with *, as in 'model.layers.0.*'."
            )
        found.update(dict.fromkeys(named, bits))
    return found


def _widths(
    paths: tuple[str, ...], constraints: Constraints, fixed: Mapping[str, int], costs: Costs
) -> tuple[int, ...]:
    """The widths that linears may have together."""
    wanted = {fixed[path] for path in paths if path in fixed}
    if len(wanted) > 1:
        raise InvalidInput(
            f"The linears {', '.join(paths)} are fixed at {' and '.join(map(str, sorted(wanted)))} bits but must have "
            "one width; fix them alike, or let them differ (--free)."
        )
    there = tuple(bits for bits in costs.bits[paths[0]] if bits != FULL)
    chosen = tuple(wanted) or (there if constraints.allowed is None else constraints.allowed)
    if missing := [bits for bits in chosen if bits not in (*there, FULL)]:
        raise InvalidInput(f"{missing[0]} bits are not in the calibrated set {list(there)}; choose one of these.")
    if not chosen:
        raise InvalidInput("No width is allowed; allow one at least.")
    return tuple(sorted(set(chosen)))


def _plain_width(planned: PlannedBits) -> int:
    """The width of the weights in a plan's entry."""
    return Precision.parse(planned).weights or FULL
