"""Choosing one option per item, with the least total error within a budget: exactly.

This is the multiple-choice knapsack problem. It is solved by dynamic programming over the items: a state is a choice
for the items so far, with its cost and its error, and a state that another one beats in both is dropped. Their number
could still grow with the budget, which is in bits, so states are also dropped that cannot lead to the best: the errors
of the items that follow are at least those of their linear relaxation within what is left of the budget, and a
solution that is good but perhaps not the best is known from a pass before that kept few states, and from changing one
item or two at a time. Options with which the relaxation cannot come down to it are dropped before all. The last pass
leaves out nothing that could be the best, so the result is exact. Where too many choices are nearly equal for that, it
is not, and says by how much at most.

Errors are rounded to 60 binary digits of their largest total first, and everything is compared in integers: no result
depends on the order of additions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from quept.errors import InvalidInput
from quept.search.relaxation import Integers, Item, Relaxation, bounds

FIRST_PASS_STATES = 1 << 8
GROWTH = 8  # of the states kept from pass to pass, until none that could matter is left out
MOST_STATES = 1 << 15  # beyond it the best choice that was found is returned
HIGHEST_RANK = 1 << 52  # beyond it ranks are counted anew, before they overflow
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


@dataclass(frozen=True)
class Choice:
    """The position of one option for each item; `excess` is how much more than the least its error is at most."""

    positions: tuple[int, ...]
    excess: float = 0.0


def choose(items: Sequence[Sequence[Option]], budget: int) -> Choice:
    """Choose one option for each item, so that costs are at most `budget` and errors least in total.

    Of equal errors the lesser cost is taken, of equal costs the choice that is first in order of positions, compared
    item by item. Where so many choices are nearly equal that more than `MOST_STATES` would have to be kept, the best
    that was found is returned, with an `excess` above 0. Raises `Infeasible` if nothing fits.
    """
    least = sum(min(option.cost for option in options) for options in items)
    if least > budget:
        raise Infeasible(budget, least)
    if not items:
        return Choice(())
    problem, factor = _Problem.of(items, budget)
    best, limit = problem.improved(problem.cheapest), FIRST_PASS_STATES
    while True:
        known = problem.error(best)
        found, complete = problem.reduced(known).solve(known, min(limit, MOST_STATES))
        if complete:
            assert found is not None  # what is known itself is never left out
            return Choice(found)
        if found is not None:
            found = problem.improved(found)
            best = min(best, found, key=problem.error)
        if limit >= MOST_STATES:
            return Choice(best, max(0.0, problem.error(best) - problem.bound.least) / factor)
        limit *= GROWTH


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
    items: tuple[Item, ...]
    budget: int

    @classmethod
    def of(cls, items: Sequence[Sequence[Option]], budget: int) -> tuple["_Problem", float]:
        """Return the problem in integers, and what its errors were multiplied by."""
        largest = sum(max(abs(option.error) for option in options) for options in items)
        # A power of two, so that errors that are short binary numbers, equal sums among them, stay what they are.
        factor = float(2.0 ** (DIGITS - 1 - np.frexp(largest)[1])) if largest else 1.0
        made = []
        for options in items:
            costs = np.array([option.cost for option in options], dtype=np.int64)
            errors = np.rint(np.array([option.error for option in options]) * factor).astype(np.int64)
            kept = _undominated(costs, errors, np.arange(len(options)))
            made.append(Item(costs[kept], errors[kept], kept))
        return cls(tuple(made), budget), factor

    @property
    def cheapest(self) -> tuple[int, ...]:
        """The choice with the least cost."""
        return tuple(int(item.positions[0]) for item in self.items)

    @cached_property
    def bound(self) -> "Relaxation":
        """The linear relaxation of the whole."""
        return Relaxation.of(self.items, self.budget)

    def error(self, positions: Sequence[int]) -> int:
        """Return the total error of a choice."""
        chosen = zip(self.items, positions, strict=True)
        return sum(int(item.errors[item.positions == position][0]) for item, position in chosen)

    def improved(self, positions: Sequence[int]) -> tuple[int, ...]:
        """Return a choice within the budget, from one within it, that no change of one item or two improves."""
        owner = np.repeat(np.arange(len(self.items)), [len(item.costs) for item in self.items])
        costs = np.concatenate([item.costs for item in self.items])
        errors = np.concatenate([item.errors for item in self.items])
        every = np.concatenate([item.positions for item in self.items])
        first = np.searchsorted(owner, np.arange(len(self.items)))
        place = np.array([
            int(np.flatnonzero(item.positions == position)[0])
            for item, position in zip(self.items, positions, strict=True)
        ]) + first  # fmt: skip
        while True:
            spent, change = costs - costs[place][owner], errors - errors[place][owner]
            room = self.budget - int(costs[place].sum())
            order = np.argsort(spent, kind="stable")
            lowest = np.minimum.accumulate(change[order])
            at = np.maximum.accumulate(np.where(change[order] == lowest, np.arange(len(order)), 0))
            # Beside each change, the best one that both fit with; staying is a change as well.
            fitting = np.searchsorted(spent[order], room - spent, side="right") - 1
            beside = order[at[fitting.clip(min=0)]]
            both = np.where((fitting >= 0) & (owner[beside] != owner), change + change[beside], 0)
            best = int(np.argmin(both))
            if both[best] >= 0:
                return tuple(every[place].tolist())
            place[[owner[best], owner[beside[best]]]] = best, beside[best]

    def reduced(self, known: int) -> "_Problem":
        """Return the problem without the options with which no total error comes down to `known`."""
        items = []
        for item, dearer in zip(self.items, self.bound.dearer, strict=True):
            kept = self.bound.least + dearer <= known + SLACK
            items.append(Item(item.costs[kept], item.errors[kept], item.positions[kept]))
        return _Problem(tuple(items), self.budget)

    def solve(self, known: int, limit: int) -> tuple[tuple[int, ...] | None, bool]:
        """Return the best choice, and whether no state was left out that could have led to a better one.

        `known` is an error that is possible: states that cannot come down to it are left out. So are the least
        promising beyond `limit`, after which there may be no choice left.
        """
        zero = np.zeros(1, dtype=np.int64)
        states = _States(zero, zero, zero, zero, zero)
        steps, complete = [], True
        for item, bound in zip(self.items, bounds(self.items), strict=True):
            states = _extended(states, item)
            states = states[states.costs <= self.budget - bound.least_cost]
            promise = bound.least_error(self.budget - states.costs) + states.errors
            states, promise = states[promise <= known + SLACK], promise[promise <= known + SLACK]
            if not len(states.costs):
                return None, False
            if len(item.costs) > 1:
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


def _extended(states: _States, item: Item) -> _States:
    """Return every state with every option of one more item: all states with the first option, then the next."""
    count, options = len(states.costs), len(item.costs)
    costs = (item.costs[:, None] + states.costs).ravel()
    errors = (item.errors[:, None] + states.errors).ravel()
    before = states.rank
    if int(np.max(before)) > HIGHEST_RANK:
        before = np.unique(before, return_inverse=True)[1].astype(np.int64)
    order = np.argsort(item.positions, kind="stable").argsort(kind="stable")
    rank = (before * options + order[:, None]).ravel()
    return _States(
        costs, errors, rank, np.tile(np.arange(count), options), np.repeat(np.arange(options), count)
    )  # fmt: skip


def _undominated(costs: Integers, errors: Integers, rank: Integers) -> Integers:
    """Return the places, by rising cost, of what nothing beats: cheaper with no more error, or first of equals."""
    # Costs come in ascending runs, which a stable sort merges.
    order = np.argsort(costs, kind="stable")
    order = order[errors[order] <= np.minimum.accumulate(errors[order])]
    costs, errors, rank = costs[order], errors[order], rank[order]
    # Errors never rise any more: those of equal cost and error stand together, and the last of a cost are its best.
    starts = np.flatnonzero(np.concatenate(([True], (costs[1:] != costs[:-1]) | (errors[1:] != errors[:-1]))))
    last = np.concatenate((costs[starts[1:]] != costs[starts[:-1]], [True]))
    lower = np.concatenate(([True], errors[starts[1:]] < errors[starts[:-1]]))
    first = rank == np.repeat(np.minimum.reduceat(rank, starts), np.diff(starts, append=len(order)))
    kept: Integers = order[first & np.repeat(last & lower, np.diff(starts, append=len(order)))]
    return kept
