"""The one derivation of codes: from a weight, clip ratios and a rounding rule to the codes of a bit-width.

Everything that needs a weight at a bit-width comes here: calibration while it trains, layers that run, the reference of
the kernel that rebuilds codes from an 8-bit master, and the baseline that rounds to nearest.

    grid:   scale and zero point over each group's clipped minimum and maximum         (paper, weight quantizer)
    code:   clamp(round(weight / scale + offset) + zero_point, 0, 2**bits - 1)

An offset, in quantization steps, is all that distinguishes learned rounding from rounding to nearest.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor

from quept.config import AdapterEntry
from quept.formats import packing
from quept.numerics import adaround, affine, rounding_mask
from quept.numerics.affine import Grid

Rounding = Callable[[Tensor, Grid], Tensor]
"""From a grouped weight, `(out, groups, inputs)`, and its grid to offsets in steps, of the weight's shape."""


class Derivation(NamedTuple):
    """A grouped weight, `(out, groups, inputs)` float32, its grid, and offsets in steps or None."""

    grouped: Tensor
    grid: Grid
    offset: Tensor | None

    def codes(self) -> Tensor:
        """Return the codes, uint8 `(out, groups, inputs)`."""
        return affine.codes(self.grouped, self.grid, self.offset)

    def dequantized(self) -> Tensor:
        """Return the weight that the codes stand for, `(out, groups, inputs)`, with straight-through gradients."""
        return affine.fake_quantize(self.grouped, self.grid, self.offset)


def derive(
    weight: Tensor,
    bits: int,
    inputs_per_scale: int,
    *,
    clip_ratios: Tensor | None = None,
    symmetric: bool = False,
    rounding: Rounding | None = None,
) -> Derivation:
    """Derive a weight, `(out, in)` float32, at a bit-width.

    `clip_ratios`, `(2, out, groups)` in (0, 1], shorten each group's range at its minimum (0) and maximum (1); None
    clips nothing. Differentiable in the weight, the ratios, and the offsets that `rounding` returns.
    """
    grouped = affine.split_groups(weight, inputs_per_scale)
    low, high = (None, None) if clip_ratios is None else clip_ratios.unsqueeze(-1)
    grid = affine.grid(grouped, bits, low, high, symmetric)
    return Derivation(grouped, grid, None if rounding is None else rounding(grouped, grid))


def masked(mask: Tensor, in_features: int, inputs_per_scale: int) -> Rounding:
    """Round as a rounding mask says, packed `(out, ceil(in / 8))` uint8: bit 1 takes the second-nearest code."""
    flips = affine.split_groups(packing.unpack(mask, 1, in_features), inputs_per_scale)
    return partial(_flip, flips)


def adapted(adapter: Tensor, entry: AdapterEntry, inputs_per_scale: int) -> Rounding:
    """Round with an adapter, `(out, in)`, that enters in steps (supplement, table 1).

    In scale space it is the offset itself; as a rounding policy it decides between rounding up and down.
    """
    steps = affine.split_groups(adapter, inputs_per_scale)
    return partial(_shift, steps) if entry == "scale" else partial(_decide, steps)


def _shift(steps: Tensor, grouped: Tensor, grid: Grid) -> Tensor:
    return steps


def _decide(steps: Tensor, grouped: Tensor, grid: Grid) -> Tensor:
    return adaround.hard_offset(grouped, grid, steps)


def _flip(flips: Tensor, grouped: Tensor, grid: Grid) -> Tensor:
    return rounding_mask.mask_offset(grouped, grid, flips)
