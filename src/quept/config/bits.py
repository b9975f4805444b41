"""Bit-widths, sets of them, and the partition of a set into bit groups."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import Field, StrictInt, field_validator

from quept.config.base import Value
from quept.errors import InvalidInput

MIN_BITS = 2
MAX_BITS = 8
FULL = 16  # full precision, where bits are written: w4a16

Bits = Annotated[int, Field(strict=True, ge=MIN_BITS, le=MAX_BITS)]


def parse_bits(text: str) -> tuple[int, ...]:
    """Return the bit-widths written as `4`, `2-8` or `2,4,8` (also mixed), ascending and without repeats.

    Raises `InvalidInput` for anything else and for bit-widths outside 2..8.
    """
    found: set[int] = set()
    for part in text.split(","):
        written = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip(), re.ASCII)
        if written is None:
            raise InvalidInput(
                f"bits {text!r} cannot be read; write one bit-width (4), a range (2-8) or a list (2,4,8)."
            )
        low, high = int(written[1]), int(written[2] or written[1])
        if not MIN_BITS <= low <= high <= MAX_BITS:
            raise InvalidInput(
                f"bits {text!r} are not possible: bit-widths go from {MIN_BITS} to {MAX_BITS}, ranges from low to high."
            )
        found.update(range(low, high + 1))
    return tuple(sorted(found))


class BitGroups(Value):
    """A partition of the bit set into groups, high to low (method: three-tier sampling; supplement, table 3)."""

    groups: tuple[tuple[StrictInt, ...], ...]

    @field_validator("groups")
    @classmethod
    def _check(cls, groups: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        named = [bits for group in groups for bits in group]
        if not groups or not all(groups):
            raise ValueError("bit groups must not be empty; write for example [[7, 8], [5, 6], [3, 4], [2]]")
        if outside := [bits for bits in named if not MIN_BITS <= bits <= MAX_BITS]:
            raise ValueError(f"bit groups name {outside} bits; bit-widths go from {MIN_BITS} to {MAX_BITS}")
        if repeated := sorted({bits for bits in named if named.count(bits) > 1}):
            raise ValueError(
                f"bit groups overlap: {repeated} stand more than once; each bit-width belongs to one group"
            )
        ordered = tuple(sorted((tuple(sorted(group)) for group in groups), key=max, reverse=True))
        if any(max(low) > min(high) for high, low in pairwise(ordered)):
            raise ValueError(f"bit groups {groups} interleave; each must hold neighbouring bit-widths")
        return ordered

    @classmethod
    def partition(cls, bits: Sequence[int]) -> Self:
        """Return the paper's partition of a bit set: the lowest bit-width alone, the others in pairs from the top."""
        ascending = sorted(set(bits))
        lowest, descending = ascending[:1], ascending[:0:-1]
        pairs = [tuple(descending[i : i + 2]) for i in range(0, len(descending), 2)]
        return cls.parse({"groups": [*pairs, tuple(lowest)]}, origin="the bit set")

    @property
    def bits(self) -> tuple[int, ...]:
        """All bit-widths, ascending."""
        return tuple(sorted(bits for group in self.groups for bits in group))

    def index(self, bits: int) -> int:
        """Return the position of the group of `bits`, 0 for the highest; raises `InvalidInput` if they are in none."""
        for position, group in enumerate(self.groups):
            if bits in group:
                return position
        raise InvalidInput(f"{bits} bits are not in the calibrated set {list(self.bits)}; choose one of these.")

    def __len__(self) -> int:
        return len(self.groups)


def covering(groups: Any, bits: tuple[int, ...]) -> BitGroups:
    """Return `groups` as a partition; raises ValueError unless it covers exactly `bits`."""
    partition = BitGroups.parse({"groups": groups}, origin="the list of bit groups")
    if partition.bits != bits:
        missing, extra = sorted(set(bits) - set(partition.bits)), sorted(set(partition.bits) - set(bits))
        raise ValueError(
            f"bit groups {groups} do not cover the bits {list(bits)}: missing {missing}, not asked "
            f"for {extra}; give each bit-width exactly one group"
        )
    return partition
