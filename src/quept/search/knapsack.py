"""Choosing one option per item, with the least total error within a budget: exactly.

This is the multiple-choice knapsack problem. It is solved by dynamic programming over the items: a state is a choice
for the items so far, with its cost and its error, and a state that another one beats in both is dropped. Their number
could still grow with the budget, which is in bits, so states are also dropped that cannot lead to the best: the errors
of the items that follow are at least those of their linear relaxation within what is left of the budget, and a
solution that is good but perhaps not the best is known from a pass before that kept few states. The last pass leaves
out nothing that could be the best, so the result is exact.

Errors are rounded to 60 binary digits of their largest total first, and everything is compared in integers: no result
depends on the order of additions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quept.errors import InvalidInput

Integers = NDArray[np.int64]

FIRST_PASS_STATES = 1 << 8
GROWTH = 16  # of the states kept from pass to pass, until none that could matter is left out
DIGITS = 60  # of the largest total error
SLACK = 1 << 24  # of 2^60: more than float64 can be wrong by in sums of a bound


@dataclass(frozen=True)
class Option:
    """One choice for an item: what it costs, a whole number from 0 up, and the error it causes, finite."""

    cost: int
    error: float


class Infeasible(InvalidInput):
    """No choice fits the budget; `least` is the smallest that has one."""

    def __init__(self, budget: int, least: int) -> None:
        super().__init__(f"The budget {budget} is below the smallest that is possible, {least}.")
        self.budget, self.least = budget, least


def choose(items: Sequence[Sequence[Option]], budget: int) -> tuple[int, ...]:
    """The position of one option for each item, so that costs are at most `budget` and errors least in total.

    Of equal errors the lesser cost is taken, of equal costs the choice that is first in order of positions, compared
    item by item. Raises `Infeasible` if nothing fits.
    """
    least = sum(min(option.cost for option in options) for options in items)
    if least > budget:
        raise Infeasible(budget, least)
    if not items:
        return ()
    problem = _Problem.of(items, budget)
    bounds = _bounds(problem.items)
    limit, known = FIRST_PASS_STATES, None
    while True:
        found, complete = problem.solve(bounds, known, limit)
        if complete:
            return found
        error = problem.error(found)
        limit, known = limit * GROWTH, error if known is None else min(known, error)


@dataclass(frozen=True)
class _Item:
    """An item's options that no other beats, by rising cost and falling error, and where each stands in the list."""

    costs: Integers
    errors: Integers
    positions: Integers


@dataclass(frozen=True)
class _States:
    """Choices for the items so far. `rank` is their order by positions; parents are states of the item before."""

    costs: Integers
    errors: Integers
    rank: Integers
    parents: Integers
    options: Integers

    def __getitem__(self, kept: Any) -> "_States":
        values = (self.costs, self.errors, self.rank, self.parents, self.options)
        return _States(*(value[kept] for value in values))


@dataclass(frozen=True)
class _Problem:
    items: tuple[_Item, ...]
    budget: int

    @classmethod
    def of(cls, items: Sequence[Sequence[Option]], budget: int) -> "_Problem":
        """The problem in integers."""
        largest = sum(max(abs(option.error) for option in options) for options in items)
        # A power of two, so that errors that are short binary numbers, equal sums among them, stay what they are.
        factor = 2.0 ** (DIGITS - 1 - np.frexp(largest)[1]) if largest else 1.0
        made = []
        for options in items:
            costs = np.array([option.cost for option in options], dtype=np.int64)
            errors = np.rint(np.array([option.error for option in options]) * factor).astype(np.int64)
            kept = _undominated(costs, errors, np.arange(len(options)))
            made.append(_Item(costs[kept], errors[kept], kept))
        return cls(tuple(made), budget)

    def error(self, positions: Sequence[int]) -> int:
        """The total error of a choice."""
        chosen = zip(self.items, positions, strict=True)
        return sum(int(item.errors[item.positions == position][0]) for item, position in chosen)

    def solve(self, bounds: Sequence["_Bound"], known: int | None, limit: int) -> tuple[tuple[int, ...], bool]:
        """The best choice, and whether no state was left out that could have led to a better one.

        `bounds` are of what follows each item. `known` is an error that is possible: states that cannot come down to
        it are left out. So are the least promising beyond `limit`.
        """
        zero = np.zeros(1, dtype=np.int64)
        states = _States(zero, zero, zero, zero, zero)
        steps, complete = [], True
        for item, bound in zip(self.items, bounds, strict=True):
            states = _extended(states, item)
            states = states[states.costs <= self.budget - bound.least_cost]
            promise = bound.least_error(self.budget - states.costs) + states.errors
            if known is not None:
                states, promise = states[promise <= known + SLACK], promise[promise <= known + SLACK]
            kept = _undominated(states.costs, states.errors, states.rank)
            if len(kept) > limit:
                kept = np.sort(kept[np.argsort(promise[kept], kind="stable")[:limit]])
                complete = False
            states = states[kept]
            steps.append(states)
        best = int(np.argmin(states.errors))  # by rising cost: the first is the cheapest
        positions = []
        for item, step in zip(reversed(self.items), reversed(steps), strict=True):
            positions.append(int(item.positions[step.options[best]]))
            best = int(step.parents[best])
        return tuple(reversed(positions)), complete


def _extended(states: _States, item: _Item) -> _States:
    """Every state with every option of one more item."""
    count, options = len(states.costs), len(item.costs)
    costs = (states.costs[:, None] + item.costs).ravel()
    errors = (states.errors[:, None] + item.errors).ravel()
    order = np.argsort(item.positions, kind="stable").argsort(kind="stable")
    ranks = np.empty(count, dtype=np.int64)
    ranks[np.argsort(states.rank, kind="stable")] = np.arange(count)
    rank = (ranks[:, None] * options + order).ravel()
    parents = np.repeat(np.arange(count), options)
    return _States(costs, errors, rank, parents, np.tile(np.arange(options), count))


def _undominated(costs: Integers, errors: Integers, rank: Integers) -> Integers:
    """The places, by rising cost, of what nothing else beats: cheaper with no more error, or first among equals."""
    order = np.lexsort((rank, errors, costs))
    falling = errors[order]
    best_before = np.minimum.accumulate(np.concatenate(([np.iinfo(np.int64).max], falling[:-1])))
    kept: Integers = order[falling < best_before]
    return kept


@dataclass(frozen=True)
class _Bound:
    """The linear relaxation of some items: the least error within a capacity, where options may be mixed."""

    least_cost: int
    spent: NDArray[np.float64]  # ascending, beyond the least cost
    errors: NDArray[np.float64]  # at these

    def least_error(self, capacity: Integers) -> NDArray[np.float64]:
        """The least error at each capacity; they are at least `least_cost`."""
        found: NDArray[np.float64] = np.interp((capacity - self.least_cost).astype(np.float64), self.spent, self.errors)
        return found


def _bounds(items: Sequence[_Item]) -> list[_Bound]:
    """For each item, the bound of those that follow: steps along their lower convex hulls, the steepest first."""
    steps = [(cost, error, index) for index, item in enumerate(items) for cost, error in _hull(item)]
    steps.sort(key=lambda step: step[1] / step[0])
    costs, errors, owners = (np.array(values) for values in zip(*steps, strict=True)) if steps else (np.zeros(0),) * 3
    bounds, least_cost, start = [], 0, 0
    for index in reversed(range(len(items))):
        later = owners > index
        spent = np.concatenate(([0.0], np.cumsum(costs[later])))
        bounds.append(_Bound(least_cost, spent, start + np.concatenate(([0.0], np.cumsum(errors[later])))))
        least_cost, start = least_cost + int(items[index].costs[0]), start + int(items[index].errors[0])
    return bounds[::-1]


def _hull(item: _Item) -> list[tuple[float, float]]:
    """The lower convex hull of an item's options as steps of (more cost, less error), flattening."""
    corners: list[tuple[int, int]] = []
    for cost, error in zip(item.costs.tolist(), item.errors.tolist(), strict=True):
        while len(corners) > 1:
            (first, high), (second, low) = corners[-2:]
            if (low - high) * (cost - first) < (error - high) * (second - first):
                break  # in Python's integers, which do not overflow
            corners.pop()
        corners.append((cost, error))
    return [(float(cost - before), float(error - above)) for (before, above), (cost, error) in pairwise(corners)]
