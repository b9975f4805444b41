"""The constraints of a plan, and the groups of linears that they leave."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from quept.config import FULL, MOST_ENTRIES, check_names, matches
from quept.errors import InvalidInput
from quept.search.cost import Costs


@dataclass(frozen=True)
class Constraints:
    """The limits of a plan, beside its budget.

    Attributes:
        allowed: bit-widths to choose from; None is all that the artifact has. 16 is full precision.
        fixed: bit-widths of linears by path or pattern, of which the last that names a linear counts.
        together: linears that must have the same bit-width.
    """

    allowed: tuple[int, ...] | None = None
    fixed: Mapping[str, int] = field(default_factory=dict)
    together: Sequence[tuple[str, ...]] = ()

    def groups(self, costs: Costs) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
        """Return all linears with a choice in groups that share a bit-width, each with the bits it may have.

        Raises `InvalidInput` where constraints contradict each other or name what there is not.
        """
        fixed = _fixed(self.fixed, costs.bits)
        return [(paths, self._bits(paths, fixed, costs)) for paths in _grouped(costs.bits, self.together)]

    def _bits(self, paths: tuple[str, ...], fixed: Mapping[str, int], costs: Costs) -> tuple[int, ...]:
        """Return the bit-widths that linears may have together."""
        wanted = {fixed[path] for path in paths if path in fixed}
        if len(wanted) > 1:
            raise InvalidInput(
                f"The linears {', '.join(paths)} are fixed at {' and '.join(map(str, sorted(wanted)))} bits but must "
                "have the same; fix them alike, or let them differ (--free)."
            )
        there = tuple(bits for bits in costs.bits[paths[0]] if bits != FULL)
        chosen = tuple(wanted) or (there if self.allowed is None else self.allowed)
        if missing := [bits for bits in chosen if bits not in (*there, FULL)]:
            raise InvalidInput(f"{missing[0]} bits are not in the calibrated set {list(there)}; choose one of these.")
        if not chosen:
            raise InvalidInput("No bit-width is allowed; allow one at least.")
        return tuple(sorted(set(chosen)))


def _grouped(paths: Iterable[str], together: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the linears in order, each alone or with those that must agree with it.

    Of a group, linears without a choice are left out: rules of the recipe keep them at one bit-width or full precision.
    """
    known = dict.fromkeys(paths)
    groups = (tuple(path for path in group if path in known) for group in together)
    of = {path: group for group in groups for path in group}
    return list(dict.fromkeys(of.get(path, (path,)) for path in known))


def _fixed(fixed: Mapping[str, int], linears: Iterable[str]) -> dict[str, int]:
    """Return the fixed bit-widths by path."""
    check_names(fixed, "The list of fixed linears", MOST_ENTRIES)
    found: dict[str, int] = {}
    for pattern, bits in fixed.items():
        if type(bits) is not int:
            raise InvalidInput(f"{pattern!r} is fixed at {bits!r}, which is no bit-width; give a whole number.")
        named = [path for path in linears if matches(path, pattern)]
        if not named:
            raise InvalidInput(
                f"There is no linear {pattern!r} to fix; the model has for example {sorted(linears)[:3]}. Patterns are "
                "written with *, as in 'model.layers.0.*'."
            )
        found.update(dict.fromkeys(named, bits))
    return found
