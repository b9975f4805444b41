"""Eight bits for all that a linear is stored as: master weight, low-rank factors, shares of ranges.

What is read back is exact in float32: a product of an 8-bit code with a bfloat16 scale has few enough digits, and so
has a sum of products of codes. So the same weights come out wherever they are made.
"""

import torch
from torch import Tensor

from quept.numerics.affine import groups_per_row, join_groups, split_groups
from quept.numerics.feedback import round_with_feedback

HIGHEST = 127  # codes are symmetric
SMALLEST = 2.0**-126  # normal float32 and bfloat16


def round_master(weight: Tensor, inputs_per_scale: int, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`(out, in)` float32 to codes, `(out, in)` int8, and scales, `(out, groups)` bfloat16, above zero.

    Scales are rounded up, so that no code is clipped; a group of zeros has scale one. Codes are the nearest, or with
    inputs `rows`, `(tokens, in)`, those of `round_with_feedback` where these have the smaller error on rows that it has
    not seen.
    """
    grouped = split_groups(weight, inputs_per_scale)
    scale = _scale(grouped.abs().amax(-1))
    # Adding what is cut off makes cutting round up: positive floats are ordered like the integers they are held as.
    raised = ((scale.view(torch.int32) + 0xFFFF) & ~0xFFFF).view(torch.float32)
    codes = join_groups((grouped / raised.unsqueeze(-1)).round_().clamp_(-HIGHEST, HIGHEST), weight.shape[1])
    if rows is not None and len(rows) > 1:
        step = join_groups(raised.unsqueeze(-1).expand_as(grouped), weight.shape[1])
        found = round_with_feedback(weight, step, HIGHEST, rows[::2])

        def error(rounded: Tensor) -> Tensor:
            return ((rounded * step - weight) @ rows[1::2].T.float()).square().sum()

        codes = found if bool(error(found) < error(codes)) else codes
    return codes.to(torch.int8).contiguous(), raised.to(torch.bfloat16)


def dense_master(codes: Tensor, scale: Tensor, inputs_per_scale: int) -> Tensor:
    """Return the weight that `round_master` gave the codes and scales of: `(out, in)` float32."""
    if scale.shape[1] == 1:
        return codes.to(torch.float32).mul_(scale.to(torch.float32))
    grouped = split_groups(codes, inputs_per_scale).to(torch.float32)
    return join_groups(grouped.mul_(scale.to(torch.float32).unsqueeze(-1)), codes.shape[1])


def master_groups(in_features: int, group_size: int | None) -> tuple[int, int]:
    """Return the inputs under one scale of the master, and scales per row."""
    inputs = min(group_size or in_features, in_features)
    return inputs, groups_per_row(in_features, inputs)


def round_factors(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors `(out, R)` and `(R, in)` in 8 bits: `up` and `down`, int8, and a scale per row, `(out,)` float32.

    Only their product counts, so each component of `down` is brought to the same height and `up` takes what it had.
    """
    height = _scale(down.abs().amax(1))
    balanced = up * height
    scale = _scale(balanced.abs().amax(1))
    return _codes(balanced / scale.unsqueeze(1)), _codes(down / height.unsqueeze(1)), scale


def product(up: Tensor, down: Tensor, scale: Tensor) -> Tensor:
    """Return the product of factors, `(up @ down) * scale`, `(out, in)` float32; its sum of integers is exact."""
    return (up.to(torch.float32) @ down.to(torch.float32)).mul_(scale.unsqueeze(1))


def round_clip_ratios(clip_ratio: Tensor, bits: int) -> Tensor:
    """Shares of minima and maxima, `(2, out, groups)` float32, as codes: uint8 of the same shape, or two to a byte.

    With 4 bits the byte, `(out, groups)`, has the minimum's code in its lower half.
    """
    steps = 2**bits
    codes: Tensor = (clip_ratio * steps).round().clamp(1, steps).sub(1).to(torch.uint8)
    return codes if bits == 8 else codes[0] | (codes[1] << 4)


def byte_clip_ratios(codes: Tensor, bits: int) -> Tensor:
    """Return the codes of `round_clip_ratios` as bytes `(2, out, groups)`, uint8, that stand for (byte + 1) / 256."""
    if bits == 8:
        return codes
    return torch.stack((codes & 15, codes >> 4)) * 16 + 15


def clip_ratios(codes: Tensor, bits: int) -> Tensor:
    """Return the clip ratios of the codes of `round_clip_ratios`, `(2, out, groups)` float32 in (0, 1]."""
    return (byte_clip_ratios(codes, bits).to(torch.float32) + 1) / 256


def _scale(highest: Tensor) -> Tensor:
    return torch.where(highest > 0, (highest / HIGHEST).clamp_min(SMALLEST), torch.ones_like(highest))


def _codes(steps: Tensor) -> Tensor:
    return steps.round().clamp(-HIGHEST, HIGHEST).to(torch.int8)
