"""Rules of a recipe: settings of their own for the linears at some module paths."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from quept.config.base import Value
from quept.config.bits import Bits
from quept.config.patterns import LONGEST_NAME, matches

MOST_RULES = 1000  # of a recipe
SETTINGS = ("bits", "group_size", "learned_rounding")  # that a rule may change, beside leaving linears out


class Rule(Value):
    """Settings of their own for the linears whose module path matches a pattern, as in `model.layers.0.mlp.*`.

    In the pattern `*` stands for anything, `?` for one character, `[12]` for one of these. Rules are read in order:
    where several name a linear, each setting is that of the last one that has it. They hold for linears in the blocks,
    and for layers outside them that `outer_bits` quantizes.
    """

    match: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
    """Pattern of module paths."""

    ignore: bool = False
    """Leave the linears at full precision, whatever the model runs at."""

    bits: Bits | None = None
    """The one bit-width of their weights, whatever bits the model runs at, but at full precision."""

    group_size: Annotated[int, Field(strict=True, ge=1)] | None = None
    """Inputs that share a scale, at the bit-widths in `granularity.grouped_bits`."""

    learned_rounding: tuple[Bits, ...] | None = None
    """Bit-widths whose rounding is learned; `[]` learns none. Layers outside the blocks never do."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        others = [name for name in SETTINGS if getattr(self, name) is not None]
        if self.ignore and others:
            raise ValueError(
                f"the rule for {self.match!r} ignores linears, so {others[0]} has no meaning; leave it out"
            )
        if not self.ignore and not others:
            raise ValueError(
                f"the rule for {self.match!r} changes nothing; give ignore = true, bits, group_size or learned_rounding"
            )
        return self

    def matches(self, path: str) -> bool:
        """Return whether the rule is for the linear at a module path."""
        return matches(path, self.match)


def merged(rules: tuple[Rule, ...], path: str) -> Rule | None:
    """Return the settings of all rules for the linear at `path` in one; None where there are none."""
    found = [rule for rule in rules if rule.matches(path)]
    if not found:
        return None
    settings: dict[str, Any] = {}
    for rule in found:
        given = {name: getattr(rule, name) for name in SETTINGS}
        settings |= {name: value for name, value in given.items() if value is not None}
    # The last rule decides whether the linear is left out: a later one may take it in again.
    if found[-1].ignore:
        return Rule(match=found[-1].match, ignore=True)
    return Rule(match=found[-1].match, **settings) if settings else None
