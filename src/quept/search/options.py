"""The options of groups of linears, as arrays."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quept.config import FULL
from quept.errors import InvalidInput
from quept.search.constraints import Constraints
from quept.search.cost import Costs, Count
from quept.search.knapsack import Option
from quept.search.quadratic import Floats
from quept.search.table import SensitivityTable


@dataclass(frozen=True)
class Group:
    """Linears that take one bit-width, and their cost and error at each that they may have."""

    paths: tuple[str, ...]
    options: Mapping[int, Option]


@dataclass(frozen=True)
class Options:
    """Groups of linears, and all bit-widths `bits` that any of them may have; arrays are `(groups, bits)`."""

    groups: tuple[Group, ...]
    bits: tuple[int, ...]

    @classmethod
    def of(cls, table: SensitivityTable, costs: Costs, constraints: Constraints, count: Count) -> "Options":
        """Return the options that constraints leave.

        Raises `InvalidInput` where the table lacks a linear or bit-width, or constraints contradict each other.
        """

        def option(paths: Sequence[str], bits: int) -> Option:
            cost = sum(costs.bits[path][bits] if count == "bytes" else bits for path in paths)
            return Option(cost, sum(_error(table, path, bits) for path in paths))

        every = constraints.groups(costs)
        groups = tuple(Group(paths, {bits: option(paths, bits) for bits in allowed}) for paths, allowed in every)
        return cls(groups, tuple(sorted({bits for group in groups for bits in group.options})))

    @property
    def shape(self) -> tuple[int, int]:
        """The number of groups and of bit-widths."""
        return len(self.groups), len(self.bits)

    def filled(self, value: Callable[[Group, int], float], empty: float = 0.0) -> Floats:
        """Return a number for every option, `empty` where a group has no such option."""
        return np.array(
            [[value(group, bits) if bits in group.options else empty for bits in self.bits] for group in self.groups]
        )

    def between_groups(self, columns: Sequence[tuple[str, str]], products: Floats) -> Floats:
        """Return what options of different groups add to the error, `(groups, bits, groups, bits)`.

        `columns` name the linear and the bits of each row and column of `products`.
        """
        members = self._members(columns)
        pairs = (members @ products @ members.T).reshape((*self.shape, *self.shape))
        groups = np.arange(len(self.groups))
        pairs[groups, :, groups, :] = 0
        return pairs

    def within_groups(self, columns: Sequence[tuple[str, str]], products: Floats) -> Floats:
        """Return what the linears of a group add to one another."""
        members = self._members(columns)
        others: Floats = products - np.diag(np.diagonal(products))
        return np.asarray(((members @ others) * members).sum(1).reshape(self.shape))

    def _members(self, columns: Sequence[tuple[str, str]]) -> Floats:
        """Return the columns that each option consists of: ones and zeros, `(groups x bits, columns)`."""
        place = {column: index for index, column in enumerate(columns)}
        members = np.zeros((len(self.groups) * len(self.bits), len(columns)))
        for item, group in enumerate(self.groups):
            for bits in group.options.keys() - {FULL}:
                row = item * len(self.bits) + self.bits.index(bits)
                members[row, [place[path, str(bits)] for path in group.paths]] = 1
        return members


def _error(table: SensitivityTable, path: str, bits: int) -> float:
    """Return the sensitivity of a linear at a bit-width; none at full precision."""
    errors = table.parts.get(path)
    if errors is None:
        raise InvalidInput(f"The sensitivity table lacks the linear {path}; measure again with quept sensitivity.")
    if bits == FULL:
        return 0.0
    if str(bits) not in errors:
        raise InvalidInput(f"The sensitivity table lacks {bits} bits of {path}; measure again with quept sensitivity.")
    return errors[str(bits)]
