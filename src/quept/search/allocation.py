"""From sensitivities to a plan: bits for each linear, so that a budget is kept and the least accuracy lost.

The expected cost of a plan in accuracy is the sum of its parts' sensitivities, measured one at a time: dynamic
programming finds the least, exactly. Where the table knows what linears add to one another, the sum with that is
lowered step by step, from there and from the uniform plan with the most bits. Either is an estimate: the true cost is
measured on the plan (`quept.search.budget`).
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from quept.config import FULL, PlannedBits, Precision, PrecisionPlan
from quept.errors import InvalidInput
from quept.search.constraints import Constraints
from quept.search.cost import Budget, Costs, Count
from quept.search.expansion import Expansion
from quept.search.knapsack import Infeasible, Option, choose
from quept.search.options import Options
from quept.search.quadratic import Floats, Integers, PairedProblem
from quept.search.table import SensitivityTable


@dataclass(frozen=True)
class Allocation:
    """A plan, the divergence it is expected to have, in nats per row, and what it takes.

    `average_bits` counts bits in storage by weights, `mean_bits` is the mean of the bits over the linears. `excess`
    is above 0 where more plans were nearly alike than could be told apart: by how much, at most, the sum of
    sensitivities is above the least.
    """

    plan: PrecisionPlan
    expected: float
    average_bits: float
    mean_bits: float
    bytes: int
    excess: float = 0.0

    def to_json(self) -> dict[str, float]:
        """Return the figures for `json.dump`."""
        return {
            "average_bits": self.average_bits,
            "mean_bits": self.mean_bits,
            "bytes": self.bytes,
            "expected_kl": self.expected,
        }


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

        Raises `InvalidInput` where the table lacks a linear or bit-width, or constraints contradict each other.
        """
        self.costs, self.count = costs, count
        self.options = Options.of(table, costs, constraints or Constraints(), count)
        self.groups, self.bits = self.options.groups, self.options.bits
        self._errors = self.options.filled(lambda group, bits: group.options[bits].error)
        self._spent = self.options.filled(lambda group, bits: group.options[bits].cost, empty=-1.0).astype(np.int64)
        self._pairs: Floats | None = None
        if pairs and table.pairs:
            self._pairs = self.options.between_groups(table.columns, table.products())
            self._errors = self._errors + self.options.within_groups(table.columns, table.products())

    @property
    def least(self) -> int:
        """The smallest possible cost of a plan, in the problem's units."""
        return sum(min(option.cost for option in group.options.values()) for group in self.groups)

    @property
    def most(self) -> int:
        """The largest possible cost of a plan."""
        return sum(max(option.cost for option in group.options.values()) for group in self.groups)

    @property
    def units(self) -> int:
        """The cost of one bit on average, in the problem's units: the weights, or the linears."""
        return sum(self.costs.weights.values()) if self.count == "bytes" else len(self.costs.weights)

    def limit(self, budget: Budget) -> int:
        """Return a budget in the problem's units: bits in storage, or bits of the linears added up."""
        if budget.max_bytes is not None:
            return (budget.max_bytes - self.costs.outside) * 8
        assert budget.average_bits is not None
        return math.floor(budget.average_bits * self.units + 1e-6)

    def solve(self, budget: Budget) -> Allocation:
        """Return the plan with the least expected divergence within a budget.

        Raises `InvalidInput`, which names the smallest budget that is possible, if there is none.
        """
        try:
            return self.within(self.limit(budget))
        except Infeasible as error:
            raise InvalidInput(self._too_small(budget, error.least)) from None

    def within(self, limit: int) -> Allocation:
        """Return the plan within a limit in the problem's units; raises `Infeasible`."""
        choice, excess = self._alone(self._errors, limit)
        if self._pairs is None:
            return replace(self._allocated(choice), excess=excess)
        problem = PairedProblem(self._spent, self._errors, self._pairs)
        starts = [choice, *self._uniform(limit)]
        return self._allocated(min((problem.improved(start, limit) for start in starts), key=problem.error))

    def improved(self, plan: PrecisionPlan, expansion: Expansion, limit: int) -> list[Allocation]:
        """Return plans ever further from one that keeps the limit, each better by the expansion around it.

        An expansion holds near where it was made: these are the plans after one change, two, four, ..., and all.
        """
        errors = self._grouped_errors(expansion)
        pairs = self.options.between_groups(list(expansion.columns), expansion.products)
        path = PairedProblem(self._spent, errors, pairs).path(self._chosen(plan), limit)
        last = len(path) - 1
        return [self._allocated(path[changes]) for changes in (*_doubling(last), last) if changes]

    def reduced(self, expansion: Expansion, limit: int) -> Allocation:
        """Return the plan within a limit that loses least if changes cost what the expansion says of each alone."""
        choice, excess = self._alone(self._grouped_errors(expansion), limit)
        return replace(self._allocated(choice), excess=excess)

    def last_wider(self, limit: int) -> list[Allocation]:
        """Return the uniform plan with the most bits within a limit, with as many last groups as fit at the next one.

        Nothing that was calibrated at the lower bit-width comes behind those. A list of one, or empty.
        """
        for choice in self._uniform(limit):
            if choice[0] + 1 == len(self.bits) or (self._spent[:, choice[0] + 1] < 0).any():
                return []
            added = self._spent[:, choice[0] + 1] - self._spent[:, choice[0]]
            room = limit - int(self._spent[:, choice[0]].sum())
            wider = choice + (np.cumsum(added[::-1])[::-1] <= room)
            return [self._allocated(wider)]
        return []

    def uniform_plans(self) -> list[Allocation]:
        """Return the uniform plans that the constraints allow, by rising bits."""
        every = np.flatnonzero((self._spent >= 0).all(0))
        return [self._allocated(np.full(len(self.groups), place)) for place in every]

    def uniform_plans_within(self, limit: int) -> list[Allocation]:
        """Return the uniform plans within a limit, by rising bits."""
        return [each for each in self.uniform_plans() if self.cost(each.plan) <= limit]

    def uniform(self, limit: int) -> list[Allocation]:
        """Return the uniform plan with the most bits within a limit, if there is one: a list of one, or empty."""
        return [self._allocated(choice) for choice in self._uniform(limit)]

    def uniform_above(self, limit: int) -> list[Allocation]:
        """Return the uniform plan with the fewest bits above a limit: a list of one, or empty."""
        return [each for each in self.uniform_plans() if self.cost(each.plan) > limit][:1]

    def allocation(self, plan: PrecisionPlan) -> Allocation:
        """Return the expected cost of a plan over all linears; raises `InvalidInput` if it breaks a constraint."""
        return self._allocated(self._chosen(plan))

    def cost(self, plan: PrecisionPlan) -> int:
        """Return the cost of a plan over all linears, in the problem's units."""
        return int(self._spent[np.arange(len(self.groups)), self._chosen(plan)].sum())

    def _alone(self, errors: Floats, limit: int) -> tuple[Integers, float]:
        """Return the best choice where every option has an error of its own, and how far it may be from the least."""
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
        """Return the position of every group's bits in a plan."""
        assigned = {path: _weight_bits(planned) for path, planned in plan.assigned(self.costs.bits).items()}
        places = []
        for group in self.groups:
            found = {assigned.get(path, FULL) for path in group.paths}
            if len(found) > 1 or not found <= group.options.keys():
                raise InvalidInput(
                    f"The plan has {', '.join(group.paths)} at {' and '.join(map(str, sorted(found)))} bits, which the "
                    "constraints do not allow."
                )
            places.append(self.bits.index(found.pop()))
        return np.array(places)

    def _allocated(self, choice: Integers) -> Allocation:
        bits_of: dict[str, int] = {}
        for group, place in zip(self.groups, choice.tolist(), strict=True):
            bits_of.update(dict.fromkeys(group.paths, self.bits[place]))
        planned: dict[str, PlannedBits] = {
            path: None if bits == FULL else bits for path, bits in self.costs.completed(bits_of).items()
        }
        pairs = np.zeros((*self._errors.shape, *self._errors.shape)) if self._pairs is None else self._pairs
        stored = sum(self.costs.bits[path][bits] for path, bits in bits_of.items())
        return Allocation(
            PrecisionPlan(planned),
            PairedProblem(self._spent, self._errors, pairs).error(choice),
            self.costs.average_bits(stored),
            sum(bits_of.values()) / len(bits_of),
            self.costs.model_bytes(stored),
        )

    def _grouped_errors(self, expansion: Expansion) -> Floats:
        """Return the first-order and own second-order change of every option of an expansion."""
        errors = expansion.errors()
        alone = self.options.filled(lambda group, bits: sum(errors[path].get(str(bits), 0.0) for path in group.paths))
        return alone + self.options.within_groups(list(expansion.columns), expansion.products)

    def _too_small(self, budget: Budget, least: int) -> str:
        if budget.max_bytes is not None:
            return (
                f"A size of {budget.max_bytes:,} bytes is too small: the smallest that the allowed bit-widths can "
                f"reach is {self.costs.model_bytes(least):,} bytes, of which {self.costs.outside:,} are not quantized."
            )
        in_layers = self.count == "layers"
        reached = least / len(self.costs.weights) if in_layers else self.costs.average_bits(least)
        smallest = math.ceil(reached * 10_000) / 10_000
        return (
            f"An average of {budget.average_bits:g} bits is too small: the smallest that the allowed bit-widths can "
            f"reach is {smallest:g}" + ("." if in_layers else ", scales and zero points included.")
        )


def _doubling(most: int) -> list[int]:
    """Return 1, 2, 4, ..., below `most`."""
    return [1 << power for power in range(most.bit_length()) if 1 << power < most]


def _weight_bits(planned: PlannedBits) -> int:
    """Return the bits of the weights in a plan's entry."""
    return Precision.parse(planned).weights or FULL
