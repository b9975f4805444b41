"""Linear relaxations of the knapsack problem, where options may be mixed: what no choice can be better than."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Item:
    """An item's options that no other beats, by rising cost and falling error, and where each stands in the list."""

    costs: Integers
    errors: Integers
    positions: Integers


@dataclass(frozen=True)
class Bound:
    """The linear relaxation of some items: the least error within a capacity, where options may be mixed."""

    least_cost: int
    spent: NDArray[np.float64]  # ascending, beyond the least cost
    errors: NDArray[np.float64]  # at these

    def least_error(self, capacity: Integers) -> NDArray[np.float64]:
        """Return the least error at each capacity; they are at least `least_cost`."""
        found: NDArray[np.float64] = np.interp((capacity - self.least_cost).astype(np.float64), self.spent, self.errors)
        return found


@dataclass(frozen=True)
class Relaxation:
    """The linear relaxation of all items within a budget: the least error, and what each option adds to it at least."""

    least: float
    dearer: tuple[NDArray[np.float64], ...]

    @classmethod
    def of(cls, items: Sequence[Item], budget: int) -> "Relaxation":
        """At the price of a unit of cost that the relaxation has, options are compared by error plus price x cost."""
        costs, errors, _ = _steps(items)
        room = budget - sum(int(item.costs[0]) for item in items)
        last = int(np.searchsorted(np.cumsum(costs), room, side="left"))
        price = -errors[last] / costs[last] if last < len(costs) else 0.0
        priced = [item.errors + price * (item.costs - item.costs[0]) for item in items]
        least = float(sum(each.min() for each in priced)) - price * room
        return cls(least, tuple(each - each.min() for each in priced))


def _steps(items: Sequence[Item]) -> tuple[NDArray[np.float64], NDArray[np.float64], Integers]:
    """Cost and change of error of the steps along all items' lower convex hulls, the steepest first, and whose."""
    steps = [(cost, error, index) for index, item in enumerate(items) for cost, error in _hull(item)]
    steps.sort(key=lambda step: step[1] / step[0])
    costs, errors, owners = zip(*steps, strict=True) if steps else ((), (), ())
    return np.array(costs, np.float64), np.array(errors, np.float64), np.array(owners, np.int64)


def bounds(items: Sequence[Item]) -> list[Bound]:
    """For each item, the bound of those that follow."""
    costs, errors, owners = _steps(items)
    bounds, least_cost, start = [], 0, 0
    for index in reversed(range(len(items))):
        later = owners > index
        spent = np.concatenate(([0.0], np.cumsum(costs[later])))
        bounds.append(Bound(least_cost, spent, start + np.concatenate(([0.0], np.cumsum(errors[later])))))
        least_cost, start = least_cost + int(items[index].costs[0]), start + int(items[index].errors[0])
    return bounds[::-1]


def _hull(item: Item) -> list[tuple[float, float]]:
    """Return the lower convex hull of an item's options as steps of (more cost, less error), flattening."""
    corners: list[tuple[int, int]] = []
    for cost, error in zip(item.costs.tolist(), item.errors.tolist(), strict=True):
        while len(corners) > 1:
            (first, high), (second, low) = corners[-2:]
            if (low - high) * (cost - first) < (error - high) * (second - first):
                break  # in Python's integers, which do not overflow
            corners.pop()
        corners.append((cost, error))
    return [(float(cost - before), float(error - above)) for (before, above), (cost, error) in pairwise(corners)]
