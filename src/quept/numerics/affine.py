"""Affine quantization of a weight matrix with learnable clipping (method, weight quantizer).

Shapes: a weight is `(out, in)`; grouped it is `(out, groups, inputs)`, its last group filled up with zeros where
`in` is no multiple of the group size. Zeros are neutral because every range contains zero. Ranges, scales and zero
points are `(out, groups, 1)`, so they broadcast to the grouped weight. All arithmetic is float32.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Grid(NamedTuple):
    """A uniform grid: `scale` and integral `zero_point` (float), both `(out, groups, 1)`, and the highest code."""

    scale: Tensor
    zero_point: Tensor
    maximum: int


def split_groups(weight: Tensor, inputs_per_scale: int) -> Tensor:
    """`(out, in)` to `(out, groups, inputs_per_scale)`, the last group filled up with zeros."""
    out_features, in_features = weight.shape
    padding = -in_features % inputs_per_scale
    if padding:
        weight = F.pad(weight, (0, padding))
    return weight.reshape(out_features, -1, inputs_per_scale)


def join_groups(grouped: Tensor, in_features: int) -> Tensor:
    """`(out, groups, inputs_per_scale)` back to `(out, in)`, without the filling."""
    return grouped.flatten(1)[:, :in_features]


def groups_per_row(in_features: int, inputs_per_scale: int) -> int:
    """Return the number of scales that a row of `in_features` weights has."""
    return -(-in_features // inputs_per_scale)


def grid(
    grouped: Tensor,
    bits: int,
    low_clip_ratio: Tensor | None = None,
    high_clip_ratio: Tensor | None = None,
    symmetric: bool = False,
) -> Grid:
    """Return the grid of `2**bits` codes over each group's range, clipped to shares of its minimum and maximum.

    `low_clip_ratio` and `high_clip_ratio` are `(out, groups, 1)` in (0, 1]; None leaves the range as it is, which is
    plain rounding to nearest. Differentiable in the shares and the weight; a group of zeros gets scale one.
    """
    low, high = min_max(grouped)
    if low_clip_ratio is not None:
        low = low * low_clip_ratio
    if high_clip_ratio is not None:
        high = high * high_clip_ratio
    return grid_between(low, high, bits, symmetric)


def grid_between(low: Tensor, high: Tensor, bits: int, symmetric: bool = False) -> Grid:
    """Return the grid of `2**bits` codes from `low` to `high`, `(out, groups, 1)` each, with zero among them.

    A symmetric one reaches as far on both sides, and one code farther below, with zero at the middle code.
    """
    maximum = 2**bits - 1
    if symmetric:
        middle = 2 ** (bits - 1)
        scale = torch.maximum(-low, high) / (middle - 1)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return Grid(scale, torch.full_like(scale, middle), maximum)
    return asymmetric_grid(low, high, maximum)


def asymmetric_grid(low: Tensor, high: Tensor, maximum: int) -> Grid:
    """Return the grid of codes 0 to `maximum` from `low` to `high`, zero among them; an empty range has scale 1."""
    scale = (high - low) / maximum
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return Grid(scale, round_straight_through(-low / scale), maximum)


def min_max(grouped: Tensor) -> tuple[Tensor, Tensor]:
    """Return each group's range, widened to hold zero: minimum and maximum, `(out, groups, 1)`."""
    if torch.is_grad_enabled() and grouped.requires_grad:
        # Finding where the extremes are costs more than their values, but far less than the gradient of amin and amax.
        low, high = grouped.min(-1, keepdim=True).values, grouped.max(-1, keepdim=True).values
    else:
        low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    # Not by clamping, whose gradient at the bound is not the same in all versions of PyTorch.
    return torch.where(low > 0, 0.0, low), torch.where(high < 0, 0.0, high)


def clamp(value: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """`value` within bounds, with gradient one from bound to bound, both included, and zero beyond.

    PyTorch's own gradient was one at the bounds up to 2.13; in 2.15 it is zero there, or a half between tensors. At two
    bits half of the rounded values lie on the bounds: they would not train.
    """
    bounds: tuple[Any, Any] = (low, high)
    if not (torch.is_grad_enabled() and value.requires_grad):
        return torch.clamp(value, *bounds)
    inside = (value >= low) & (value <= high)
    return torch.where(inside, value, torch.clamp(value.detach(), *bounds))


def round_straight_through(value: Tensor) -> Tensor:
    """Round to the nearest integer; the gradient passes unchanged."""
    return value + (value.round() - value).detach()


def fake_quantize(grouped: Tensor, to: Grid, offset: Tensor | None = None) -> Tensor:
    """`scale * (clamp(round(grouped / scale + offset) + zero_point) - zero_point)`, straight-through gradients.

    `offset`, shaped like `grouped` and measured in steps, moves values before they are rounded.
    """
    result: Tensor = _FakeQuantize.apply(  # type: ignore[no-untyped-call]
        grouped, to.scale, to.zero_point, to.maximum, offset
    )
    return result


def codes(grouped: Tensor, to: Grid, offset: Tensor | None = None) -> Tensor:
    """Return the integer codes (uint8) behind `fake_quantize`, equal to it bit for bit after `dequantize`."""
    steps = grouped / to.scale
    if offset is not None:
        steps += offset
    return steps.round_().add_(to.zero_point).clamp_(0, to.maximum).to(torch.uint8)


def dequantize(code: Tensor, to: Grid) -> Tensor:
    """`scale * (code - zero_point)`, shaped like `code`."""
    return (code.to(to.scale.dtype) - to.zero_point) * to.scale


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization with its gradient written out: half the memory and time of the traced one.

    With `u = w / s + o` and `q = clamp(round(u) + z)`, the straight-through gradients of `s * (q - z)` are:
    for `w`, 1 inside the range and 0 outside; for `s`, `(q - z)` less `w / s` inside; for `z`, `-s` outside and 0
    inside; for `o`, `s` inside and 0 outside.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, zero_point: Tensor, maximum: int, offset: Tensor | None
    ) -> Tensor:
        ratio = weight / scale
        rounded = ratio.round() if offset is None else (ratio + offset).round_()
        rounded.add_(zero_point)
        clamped = rounded.clamp(0, maximum)
        inside = clamped == rounded
        clamped.sub_(zero_point)
        if any(ctx.needs_input_grad):
            # Reuses the two buffers that are no longer needed: rounded becomes the gradient for the scale.
            by_scale = torch.sub(clamped, ratio.mul_(inside), out=rounded)
            ctx.save_for_backward(by_scale, inside, scale)
            ctx.has_offset = offset is not None
        return clamped.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        by_scale, inside, scale = ctx.saved_tensors
        to_weight = gradient * inside
        to_scale = (by_scale * gradient).sum(-1, keepdim=True)
        to_zero_point = scale * (to_weight.sum(-1, keepdim=True) - gradient.sum(-1, keepdim=True))
        to_offset = to_weight * scale if ctx.has_offset else None
        return to_weight, to_scale, to_zero_point, None, to_offset
