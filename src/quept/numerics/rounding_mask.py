"""Learned rounding (after SignRound, arXiv 2309.05516): offsets while it trains, one bit per weight afterwards.

A rounding plane holds a bit per weight and width: 0 rounds to the nearest code, 1 to the neighbour on the weight's
other side. Whether that is up or down follows from the weight, so a plane of zeros is rounding to nearest, and a weight
that is read back in a narrower dtype keeps a code next to it. Planes are packed eight weights to a byte, the first
weight in the lowest bit, each row filled up with zeros.
"""

import torch
from torch import Tensor

from quept.numerics.affine import Grid


def bytes_per_row(in_features: int) -> int:
    """Bytes of a packed plane's row."""
    return -(-in_features // 8)


def flipped(grouped: Tensor, to: Grid, offset: Tensor) -> Tensor:
    """Where an offset of at most half a step leads to another code than the nearest: bool, shaped like `grouped`.

    A weight that lies on a code has no other side and keeps it.
    """
    ratio = grouped / to.scale
    nearest = ratio.round()
    return ((ratio + offset).round() != nearest) & (ratio != nearest)


def mask_offset(grouped: Tensor, to: Grid, plane: Tensor) -> Tensor:
    """The offset in steps with which `fake_quantize` and `codes` round as the plane says."""
    ratio = grouped / to.scale
    nearest = ratio.round()
    return nearest + plane * (ratio - nearest).sign() - ratio


def pack(plane: Tensor) -> Tensor:
    """`(out, in)` bool to `(out, bytes_per_row(in))` uint8."""
    padding = -plane.shape[1] % 8
    bits = torch.nn.functional.pad(plane.to(torch.uint8), (0, padding)).view(plane.shape[0], -1, 8)
    return (bits << _shifts(plane)).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, in_features: int) -> Tensor:
    """The inverse of `pack`: `(out, in_features)` bool."""
    bits = (packed.unsqueeze(-1) >> _shifts(packed)) & 1
    return bits.flatten(1)[:, :in_features].to(torch.bool)


def _shifts(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)
