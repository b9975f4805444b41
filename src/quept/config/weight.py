"""Settings of weights: scales, adapters, storage, and all of them for one linear."""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from quept.config.base import Value
from quept.config.bits import BitGroups, Bits

AdapterKind = Literal["cascade", "shared", "independent", "none"]
AdapterEntry = Literal["weight", "scale", "rounding"]

LARGEST_RANK = 1024  # of factors in 8 bits: up to it, sums of their products are exact in float32


class Granularity(Value):
    """Number of inputs that share a scale: groups at some bit-widths, whole rows at the others."""

    group_size: Annotated[int, Field(strict=True, ge=1)] = 128
    """Inputs that share a scale at the bit-widths in `grouped_bits`. Source: paper, groups of 128."""

    grouped_bits: tuple[Bits, ...] = (2,)
    """Bit-widths whose scales are of groups; all others have one scale per output channel. Source: paper, 2 bits
    alone."""

    symmetric_bits: tuple[Bits, ...] = ()
    """Bit-widths whose zero point is always the middle code, for which integer products need no correction.
    Source: quept."""

    def inputs_per_scale(self, bits: int, in_features: int) -> int:
        """Return the inputs under one scale at `bits`; never more than the row has."""
        return min(self.group_size, in_features) if bits in self.grouped_bits else in_features


class Store(Value):
    """The form in which an artifact keeps each linear; see docs/artifact.md."""

    former_names: ClassVar = {"share_bits": "clip_ratio_bits"}

    master_bits: Literal[8] | None = None
    """8 keeps master, adapters and clip ratios in 8 bits, and 8 bits are then the master itself: no range, no adapter,
    no rounding mask. None keeps the master in the checkpoint's dtype and the rest in floats, as the paper does. Source:
    quept, docs/artifact.md."""

    group_size: Annotated[int, Field(strict=True, ge=1)] | None = None
    """Inputs of a row that share a scale of the 8-bit master; None: the whole row. Source: quept."""

    clip_ratio_bits: Literal[4, 8] = 8
    """Bits of each stored clip ratio at bit-widths with groups; rows always have 8. Source: quept."""

    def without_master(self, bits: Iterable[int]) -> tuple[int, ...]:
        """Return those of some bit-widths that are rounded from the master."""
        return tuple(each for each in bits if each != self.master_bits)


class Adapter(Value):
    """MB-CLoRA: the low-rank slice that each bit group uses, and where it enters.

    All kinds own the same `B: (out, R)` and `A: (R, in)`, with `R` the rank times the number of groups.
    """

    kind: AdapterKind = "cascade"
    """Slice of `B A` that a bit group reads: `cascade`, its own and those of all higher groups; `independent`, its own;
    `shared`, all; `none`, no adapters. Source: paper, MB-CLoRA."""

    entry: AdapterEntry = "weight"
    """Where the product enters: `weight`, `Q(W + B A)`; `scale`, an offset in steps (LR-QAT); `rounding`, the choice of
    the neighbouring code (CBQ). Source: supplement, table 1."""

    rank: Annotated[int, Field(strict=True, ge=1)] = 16
    """Rank that each bit group adds. Source: paper, main tables; others in the supplement, table 4."""

    isolated: bool = False
    """Stop the gradient of a cascade's lower group at the slices of higher ones, so that low bits cannot disturb high
    ones. Source: quept."""

    bits: tuple[Bits, ...] = ()
    """Bit-widths that have an adapter; empty: all. Source: quept."""

    @model_validator(mode="after")
    def _isolates_a_cascade(self) -> Self:
        if self.isolated and self.kind != "cascade":
            raise ValueError(f"adapter.isolated is for kind 'cascade'; {self.kind!r} has no slices of higher groups")
        return self

    def total_rank(self, groups: BitGroups) -> int:
        """Return the number of columns of `B` and rows of `A`."""
        return self.rank * len(self._adapted(groups))

    def columns(self, bits: int, groups: BitGroups) -> slice:
        """Return the columns of `B` and rows of `A` that a bit-width uses; none where it has no adapter."""
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
        """Return the groups that have an adapter, high to low."""
        if self.kind == "none":
            return []
        return [group for group in groups.groups if not self.bits or set(self.bits) & set(group)]


class WeightSpec(Value):
    """The settings of one elastic linear.

    One that is `fixed` has a single bit-width, at which it runs whenever the model runs at any. `scaled` says whether
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
        """Return the bits in which a clip ratio is stored at `bits`."""
        return self.store.clip_ratio_bits if self.inputs_per_scale(bits, in_features) < in_features else 8

    def inputs_per_scale(self, bits: int, in_features: int) -> int:
        """Return the inputs under one scale at `bits`, which may be the master's; never more than the row has."""
        if bits == self.store.master_bits:
            return min(self.store.group_size or in_features, in_features)
        return self.granularity.inputs_per_scale(bits, in_features)
