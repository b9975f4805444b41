"""From sensitivities to a plan: which width each linear gets, so that a budget is kept and the least accuracy lost.

What a plan is expected to cost in accuracy is the sum of its parts' sensitivities. They were measured one at a time, so
the sum is an estimate; what a plan does cost is measured on the plan (`quept.search.budget`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch

from quept.errors import InvalidInput
from quept.nn.size import linear_bits, unquantized_bytes
from quept.plan import PlannedWidth, PrecisionPlan, Widths
from quept.precision import elastic_linears
from quept.search.knapsack import Infeasible, Option, choose
from quept.search.table import SensitivityTable
from quept.widths import FULL

Count = Literal["bytes", "layers"]


@dataclass(frozen=True)
class Costs:
    """What a model's linears occupy, by path: how many weights, and bits in storage by width.

    Bits in storage are codes, scales and zero points; see `quept.nn.size.linear_bits`. `outside` are the bytes of what
    no width changes.
    """

    weights: Mapping[str, int]
    bits: Mapping[str, Mapping[int, int]]
    outside: int

    @classmethod
    def of(cls, model: Any, stored: torch.dtype) -> "Costs":
        """Those of a model, which needs no weights for it; `stored` is the checkpoint's dtype."""
        linears = elastic_linears(model)
        return cls(
            weights={path: layer.weight.numel() for path, layer in linears.items()},
            bits={
                path: {bits: linear_bits(layer, bits, stored) for bits in (*layer.spec.groups.bits, FULL)}
                for path, layer in linears.items()
            },
            outside=unquantized_bytes(model, stored),
        )

    def average_bits(self, bits: int) -> float:
        """Bits in storage by the number of weights."""
        return bits / sum(self.weights.values())

    def model_bytes(self, bits: int) -> int:
        """Bytes of the whole model whose linears take so many bits."""
        return self.outside + (bits + 7) // 8


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
class Budget:
    """How much a plan may take: an average width, as `count` has it, or bytes of the whole model.

    Counted in bytes, the average is bits in storage, scales and zero points included, over the weights; counted in
    layers it is the paper's, the mean of the widths over the linears.
    """

    average_bits: float | None = None
    max_bytes: int | None = None
    count: Count = "bytes"

    def __post_init__(self) -> None:
        if (self.average_bits is None) == (self.max_bytes is None):
            raise InvalidInput("A budget is an average width or a size: give one of the two.")
        if self.average_bits is not None and not 0 < self.average_bits <= FULL:
            raise InvalidInput(f"The average of {self.average_bits} bits is not possible; give more than 0, up to 16.")
        if self.max_bytes is not None and self.count == "layers":
            raise InvalidInput("A size is in bytes; layers can be counted in an average width only.")


@dataclass(frozen=True)
class Allocation:
    """A plan, the divergence it is expected to have (the sum, in nats per row), and what it takes.

    `average_bits` counts bits in storage by weights, `mean_width` is the mean of the widths over the linears.
    """

    plan: PrecisionPlan
    expected: float
    average_bits: float
    mean_width: float
    bytes: int


@dataclass(frozen=True)
class _Group:
    """Linears that take one width, and what they cost at each that they may have."""

    paths: tuple[str, ...]
    options: Mapping[int, Option]


class Problem:
    """One model, one table, one set of constraints: solved for any number of budgets."""

    def __init__(
        self, table: SensitivityTable, costs: Costs, constraints: Constraints = Constraints(), count: Count = "bytes"
    ) -> None:
        """Raises `InvalidInput` where the table lacks a linear or width, or constraints contradict each other."""
        self.costs, self.count, self.background = costs, count, table.background
        fixed = _fixed(constraints.fixed, costs.bits)
        self.groups = [
            _Group(
                paths, {bits: self._option(table, paths, bits) for bits in _widths(paths, constraints, fixed, costs)}
            )
            for paths in _grouped(costs.bits, constraints.together)
        ]

    @property
    def least(self) -> int:
        """The smallest cost that a plan can have, in the problem's units."""
        return sum(min(option.cost for option in group.options.values()) for group in self.groups)

    @property
    def most(self) -> int:
        """The largest cost that a plan can have."""
        return sum(max(option.cost for option in group.options.values()) for group in self.groups)

    def limit(self, budget: Budget) -> int:
        """A budget in the problem's units: bits in storage, or widths added up."""
        if budget.max_bytes is not None:
            return (budget.max_bytes - self.costs.outside) * 8
        assert budget.average_bits is not None
        total = sum(self.costs.weights.values()) if self.count == "bytes" else len(self.costs.weights)
        return math.floor(budget.average_bits * total + 1e-6)

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
        options = [list(group.options.items()) for group in self.groups]
        chosen = choose([[option for _, option in each] for each in options], limit)
        picked = [each[position] for each, position in zip(options, chosen, strict=True)]
        bits: dict[str, PlannedWidth] = {}
        for group, (width, _) in zip(self.groups, picked, strict=True):
            bits.update(dict.fromkeys(group.paths, None if width == FULL else width))
        return self.allocation(PrecisionPlan({path: bits[path] for path in self.costs.bits}))

    def allocation(self, plan: PrecisionPlan) -> Allocation:
        """What a plan over all linears is expected to cost; widths that the table lacks raise `InvalidInput`."""
        widths = {path: _plain_width(path, planned) for path, planned in plan.assigned(self.costs.bits).items()}
        expected = self.background
        for group in self.groups:
            for width in {widths[path] for path in group.paths}:
                if width not in group.options:
                    raise InvalidInput(f"The plan has {group.paths[0]} at {width} bits, which this table cannot judge.")
            expected += group.options[widths[group.paths[0]]].error
        bits = sum(self.costs.bits[path][width] for path, width in widths.items())
        mean = sum(widths.values()) / len(widths)
        return Allocation(plan, expected, self.costs.average_bits(bits), mean, self.costs.model_bytes(bits))

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


def _error(table: SensitivityTable, path: str, bits: int) -> float:
    """The sensitivity of a linear at a width; at full precision none, where that is what the others are at."""
    errors = table.parts.get(path)
    if errors is None:
        raise InvalidInput(f"The sensitivity table lacks the linear {path}; measure again with quept sensitivity.")
    if bits == FULL and table.origin.around_full:
        return 0.0
    name = "w16a16" if bits == FULL else str(bits)
    if name not in errors:
        raise InvalidInput(f"The sensitivity table lacks {bits} bits of {path}; measure again with quept sensitivity.")
    return errors[name]


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


def _plain_width(path: str, planned: PlannedWidth) -> int:
    """The width of the weights in a plan's entry."""
    return Widths.parse(planned).weights or FULL
