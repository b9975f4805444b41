"""Learned rounding (after SignRound, arXiv 2309.05516): offsets while it trains, one bit per weight afterwards.

A rounding mask holds a bit per weight and bit-width: 0 rounds to the nearest code, 1 to the neighbour on the weight's
other side. Whether that is up or down follows from the weight, so a mask of zeros is rounding to nearest, and a weight
that is read back in a narrower dtype keeps a code next to it. `formats.packing` packs masks, at one bit.
"""

from torch import Tensor

from quept.numerics.affine import Grid


def flipped(grouped: Tensor, to: Grid, offset: Tensor) -> Tensor:
    """Return where an offset of at most half a step leads to another code than the nearest, as bool.

    A weight that lies on a code has no other side and keeps it.
    """
    ratio = grouped / to.scale
    nearest = ratio.round()
    return ((ratio + offset).round() != nearest) & (ratio != nearest)


def mask_offset(grouped: Tensor, to: Grid, mask: Tensor) -> Tensor:
    """Return the offset in steps with which `fake_quantize` and `codes` round as the mask says."""
    ratio = grouped / to.scale
    nearest = ratio.round()
    return nearest + mask * (ratio - nearest).sign() - ratio
