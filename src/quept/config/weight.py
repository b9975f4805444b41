"""What settings say of weights: scales, adapters, and what is kept of a linear."""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from quept.config.base import Value
from quept.config.bits import BitGroups, Bits

AdapterKind = Literal["cascade", "shared", "independent", "none"]
AdapterEntry = Literal["weight", "scale", "rounding"]

LARGEST_RANK = 1024  # of factors in 8 bits: up to it, sums of their products are exact in float32


class Granularity(Value):
    """How many inputs share a scale: groups of `group_size` at the widths in `grouped_bits`, rows elsewhere.

    At the widths in `symmetric_bits` the zero point is always the middle code, for which integer products need no
    correction.
    """

    group_size: Annotated[int, Field(ge=1)] = 128
    grouped_bits: tuple[Bits, ...] = (2,)
    symmetric_bits: tuple[Bits, ...] = ()

    def inputs_per_scale(self, bits: int, in_features: int) -> int:
        """Inputs under one scale at this width; never more than the row has."""
        return min(self.group_size, in_features) if bits in self.grouped_bits else in_features


class Store(Value):
    """What an artifact keeps of each linear: all in floats where `master_bits` is None, else all in 8 bits.

    The master weight then has a scale for every `group_size` inputs of a row (None: one for the row). The shares that
    ranges are clipped to take `clip_ratio_bits` each at widths with groups, and 8 where there is one range per row. The
    width `master_bits` is the master itself: it has no range, no adapter and no plane. See docs/artifact.md.
    """

    former_names: ClassVar = {"share_bits": "clip_ratio_bits"}

    master_bits: Literal[8] | None = None
    group_size: Annotated[int, Field(ge=1)] | None = None
    clip_ratio_bits: Literal[4, 8] = 8

    def without_master(self, widths: Iterable[int]) -> tuple[int, ...]:
        """Those of some widths that are rounded from the master."""
        return tuple(bits for bits in widths if bits != self.master_bits)


class Adapter(Value):
    """MB-CLoRA: which low-rank slice each bit group uses, and where it enters (supplement, tables 1 and 4).

    `rank` is the rank that each group adds. All kinds own the same `B: (out, R)` and `A: (R, in)`, with `R` the
    rank times the number of groups; they differ only in the slice that a group reads. `isolated` stops the gradient
    of a cascade's lower group at the slices it shares with higher ones, so that low widths cannot disturb high ones.
    `bits` are the widths that have an adapter; empty means all.
    """

    kind: AdapterKind = "cascade"
    entry: AdapterEntry = "weight"
    rank: Annotated[int, Field(ge=1)] = 16
    isolated: bool = False
    bits: tuple[Bits, ...] = ()

    @model_validator(mode="after")
    def _isolates_a_cascade(self) -> Self:
        if self.isolated and self.kind != "cascade":
            raise ValueError(f"adapter.isolated is for kind 'cascade'; {self.kind!r} has no slices of higher groups")
        return self

    def total_rank(self, groups: BitGroups) -> int:
        """Columns of `B` and rows of `A`."""
        return self.rank * len(self._adapted(groups))

    def columns(self, bits: int, groups: BitGroups) -> slice:
        """The columns of `B` and rows of `A` that a width uses; none where it has no adapter."""
        adapted = self._adapted(groups)
        group = groups.groups[groups.index(bits)]
        if group not in adapted or (self.bits and bits not in self.bits):
            return slice(0, 0)
        last = self.rank * (adapted.index(group) + 1)
        match self.kind:
            case "independent":
                return slice(last - self.rank, last)
            case "shared":
                return slice(0, self.rank * len(adapted))
            case _:
                return slice(0, last)

    def _adapted(self, groups: BitGroups) -> list[tuple[int, ...]]:
        """The groups that have an adapter, high to low."""
        if self.kind == "none":
            return []
        return [group for group in groups.groups if not self.bits or set(self.bits) & set(group)]


class WeightSpec(Value):
    """All that one elastic linear layer must know: widths, granularity and adapter.

    One that is `fixed` has a single width, at which it runs whenever the model runs at any. `scaled` says whether
    transforms multiply its columns.
    """

    groups: BitGroups
    granularity: Granularity
    adapter: Adapter
    learned_rounding: tuple[Bits, ...] = ()
    rounding_method: str = "offsets"
    store: Store = Store()
    scaled: bool = True
    fixed: bool = False

    def bits_for(self, bits: int) -> int:
        """Return the bit-width that the layer runs at where the model runs at `bits`."""
        return self.groups.bits[0] if self.fixed else bits

    def has_adapter(self, bits: int) -> bool:
        """Return whether a bit-width has an adapter."""
        return bool(self.adapter.columns(bits, self.groups).stop > 0)

    def clip_ratio_bits(self, bits: int, in_features: int) -> int:
        """Bits in which the share of one end of a range is stored at this width."""
        return self.store.clip_ratio_bits if self.inputs_per_scale(bits, in_features) < in_features else 8

    def inputs_per_scale(self, bits: int, in_features: int) -> int:
        """Inputs under one scale at this width, which may be the master's; never more than the row has."""
        if bits == self.store.master_bits:
            return min(self.store.group_size or in_features, in_features)
        return self.granularity.inputs_per_scale(bits, in_features)
