"""Products of packed weights and activations rounded tile by tile: the specification of kernels for few tokens.

Each token's inputs are rounded to signed eight bits, with a scale for every tile of 128, so that large channels cost no
accuracy elsewhere:

    unit = max(max|x| over the tile / 127, smallest normal float32)      a = clamp(round(x * (1 / unit)), -127, 127)

A tile that is not finite has a unit of NaN. Sums of products of codes are exact. Float32 enters where units and scales
do, in an order that does not depend on the kernel's path or the number of threads.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from quept.formats import tiles
from quept.formats.packed import PackedWeight
from quept.formats.tiles import TILE
from quept.numerics import affine

TINY = torch.finfo(torch.float32).tiny
HIGHEST = 127  # code of an activation
LANES = 8  # that sums of floats are kept in


class TileTokens(NamedTuple):
    """Tokens rounded tile by tile: codes `(tokens, tiles, 128)` and units `(tokens, tiles)`, float32 both."""

    codes: Tensor
    unit: Tensor


def quantize_tiles(x: Tensor) -> TileTokens:
    """Round `(tokens, in)` to signed eight bits, a scale for each tile of 128 inputs."""
    rows = affine.split_groups(x.to(torch.float32), TILE)
    unit = (rows.abs().amax(-1) / HIGHEST).clamp_min(TINY)
    finite = unit.isfinite()
    unit = unit.where(finite, torch.nan)
    codes = (rows * unit.reciprocal().unsqueeze(-1)).round().clamp(-HIGHEST, HIGHEST)
    return TileTokens(codes.where(finite.unsqueeze(-1), 0), unit)


def tile_product(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """Return the product of `x`, `(tokens, in)`, rounded, and a weight: `(tokens, out)`, to the bits of any kernel.

    A tile has one, two (groups of 64) or four (groups of 32) units of inputs that share a scale. For every unit `u`,
    `d[u, l]` are the sums of products of codes in lane `l`, which has inputs `32 k + 4 l` to `32 k + 4 l + 3` of the
    tile, and `e[u]` is the sum of the activation's codes. Codes of eight bits and their zero points count from 128.

        several scales:  lane[l] = sum over u of d[u, l] * (s[u] * unit[u])
                         zero[l] = sum over u = l, l + 8, l + 16, ... of (s[u] * z[u]) * (unit[u] * e[u])
                         y = row_scale * tree(lane - zero)
        one scale:       lane[l] = sum over u of d[u, l] * unit[u]
                         zero[l] = sum over u = l, l + 8, l + 16, ... of unit[u] * e[u]
                         y = row_scale * (tree(lane) - z * tree(zero))

    Sums go from the first to the last; `tree` adds lane `l + 4` to lane `l`, then `l + 2` to `l`, then `l + 1`. Bias
    is added in float32, and the result is rounded once to the dtype of `x`. Slow: for comparison. `ValueError` for
    groups that are not multiplied in integers.
    """
    per_tile = units_per_tile(weight.shape[1], weight.inputs_per_scale)
    if per_tile is None:
        raise ValueError(f"groups of {weight.inputs_per_scale} inputs are not multiplied in integers")
    if not len(x):
        return x.new_empty(0, weight.shape[0])
    tokens = quantize_tiles(x)
    offset = 128 if weight.bits == 8 else 0
    sets = tiles.SETS // per_tile
    activation = tokens.codes.view(*tokens.unit.shape, per_tile, sets, LANES, 4)
    padded = F.pad(weight.unpacked(), (0, -weight.shape[1] % TILE), value=offset)
    codes = (padded.to(torch.float32) - offset).view(weight.shape[0], *activation.shape[1:])
    unit = tokens.unit.repeat_interleave(per_tile, dim=1)
    e = unit * activation.sum((-1, -2, -3)).flatten(1)  # (tokens, units)
    z, s = _by_unit(weight.zero_point.to(torch.float32) - offset, weight, per_tile), None
    if weight.scale is not None:
        s = _by_unit(weight.scale.to(torch.float32), weight, per_tile)
    rows = []
    for token in range(len(x)):
        sums = (codes * activation[token]).sum((-1, -3)).flatten(1, 2)  # (out, units, lanes)
        if s is None:
            dot = _tree(_in_order(sums * unit[token].view(1, -1, 1)))
            zero = z[:, 0] * _tree(_in_order(_every_eighth(e[token].unsqueeze(0))))
            rows.append((dot - zero) * weight.row_scale)
        else:
            lane = _in_order(sums * (s * unit[token]).unsqueeze(-1))
            zero = _in_order(_every_eighth((s * z) * e[token]))
            rows.append(_tree(lane - zero) * weight.row_scale)
    result = torch.stack(rows)
    return (result if bias is None else result + bias.to(torch.float32)).to(x.dtype)


def units_per_tile(in_features: int, inputs_per_scale: int) -> int | None:
    """Return the units of a tile, each with one scale; None for groups that are not multiplied in integers."""
    if inputs_per_scale >= in_features or inputs_per_scale % TILE == 0:
        return 1
    return TILE // inputs_per_scale if inputs_per_scale in (32, 64) else None


def _by_unit(values: Tensor, weight: PackedWeight, per_tile: int) -> Tensor:
    """Repeat values of groups, `(out, groups)`, to `(out, units)`; units behind the last group are zero."""
    count = tiles.tiles_per_row(weight.shape[1]) * per_tile
    repeats = max(1, count if weight.groups == 1 else weight.inputs_per_scale // TILE)
    values = values.repeat_interleave(repeats, dim=1)[:, :count]
    return F.pad(values, (0, count - values.shape[1]))


def _in_order(terms: Tensor) -> Tensor:
    """Sum `(rows, terms, lanes)` over terms, from the first to the last."""
    total = torch.zeros_like(terms[:, 0])
    for term in terms.unbind(1):
        total = total + term
    return total


def _every_eighth(values: Tensor) -> Tensor:
    """Return `(rows, units)` as terms of eight lanes, `(rows, terms, 8)`, padded with zeros."""
    return affine.split_groups(values, LANES)


def _tree(lanes: Tensor) -> Tensor:
    for half in (4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes.squeeze(-1)
