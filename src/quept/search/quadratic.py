"""Improving a choice where the errors of two items also depend on each other: a search step by step.

With such pairs the problem is no longer one that dynamic programming solves, so this finds a local optimum: no change
of one item, or of two at once, that keeps the limit makes the error less.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEAST_GAIN = 1e-9  # of the largest error; less is rounding


@dataclass(frozen=True)
class PairedProblem:
    """Items with options, of which one is to be chosen for each.

    Attributes:
        costs: `(items, options)`; -1 where an item has no such option.
        errors: `(items, options)`, of the options alone.
        pairs: `(items, options, items, options)`, what two items' options add, each pair counted twice; zero within an
            item.
    """

    costs: Integers
    errors: Floats
    pairs: Floats

    def error(self, choice: Integers) -> float:
        """Return the error of an option for each item, `(items,)`."""
        items = np.arange(len(choice))
        return float(self.errors[items, choice].sum() + self.pairs[items, choice][:, items, choice].sum())

    def improved(self, start: Integers, limit: int) -> Integers:
        """Return a choice within the limit that no change of one or two items makes better, from one within it."""
        return self.path(start, limit)[-1]

    def path(self, start: Integers, limit: int) -> list[Integers]:
        """Return the choices on the way there, each one change from the one before; the first is the start."""
        path = [start.copy()]
        least = LEAST_GAIN * (float(np.abs(self.errors).max()) or 1.0)
        while True:
            move = self._best_move(path[-1], limit, least)
            if move is None:
                return path
            path.append(path[-1].copy())
            for item, option in move:
                path[-1][item] = option

    def _best_move(self, choice: Integers, limit: int, least: float) -> list[tuple[int, int]] | None:
        """Return the change of one item, or else of two, that lowers the error most; the first of equal ones."""
        items, (count, options) = np.arange(len(choice)), self.costs.shape
        room = limit - int(self.costs[items, choice].sum())
        spent = self.costs - self.costs[items, choice][:, None]
        alone = self.errors + 2 * self.pairs[:, :, items, choice].sum(-1)
        alone = np.where(self.costs < 0, np.inf, alone - alone[items, choice][:, None])
        single = np.where(spent <= room, alone, np.inf)
        place = int(np.argmin(single))
        if single.flat[place] < -least:
            return [divmod(place, options)]
        # Two at once: what each gains alone, and what they gain beside each other.
        chosen = self.pairs[items, choice]
        beside = self.pairs - self.pairs[:, :, items, choice][:, :, :, None] - chosen[:, None]
        beside += chosen[:, items, choice][:, None, :, None]
        both = alone[:, :, None, None] + alone + 2 * beside
        allowed = spent[:, :, None, None] + spent <= room
        allowed &= (items[:, None] < items)[:, None, :, None]
        both = np.where(allowed, both, np.inf)
        place = int(np.argmin(both))
        if not both.flat[place] < -least:
            return None
        first, second = divmod(place, count * options)
        return [divmod(first, options), divmod(second, options)]
