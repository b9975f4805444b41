"""Rounding of activations (method, section 2): on a range that every token brings along, or on one for all.

Ranges of tokens are symmetric, and that of a whole tensor goes from `-below` to `above`. Values are `(..., in)`. All of
a token's `in` values share a range, or every `group_size` of them, the last group being shorter where `in` is no
multiple. All arithmetic is float32; results have the dtype of the values.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from quept.numerics.affine import clamp, round_straight_through

TINY = torch.finfo(torch.float32).tiny  # below it a scale has lost digits, and its reciprocal may be infinite
NARROWEST, CANDIDATES = 0.4, 25  # shares from the whole range down, 0.025 apart
PERCENTILES = (0.999, 0.9999, 0.99999)  # of values, on either side (RepQ-ViT, published code)
CLIP_RATIOS = (
    1.0,
    0.94,
    0.88,
    0.8,
    0.72,
    0.61,
    0.52,
    0.44,
    0.38,
    0.32,
    0.27,
    0.23,
    0.2,
    0.17,
    0.14,
    0.12,
    0.1,
)  # of extremes


def highest_code(bits: int) -> int:
    """Return the highest code of a signed bit-width; the lowest is one below its negative."""
    return int(2 ** (bits - 1) - 1)


def fake_quantize(values: Tensor, clip_ratio: Tensor, highest: Tensor, group_size: int | None = None) -> Tensor:
    """`s * clamp(round(x / s), -highest - 1, highest)` with `s = share * max|x| / highest` of the token's range.

    `share`, in (0, 1], and `highest` are scalars. Differentiable in the share, and straight-through in the values, for
    which each range counts as a constant. A range of zeros stays zero. For values in bfloat16 the scale is one, too, so
    that multiplying by it is the only rounding.
    """
    grouped = _split(values.to(torch.float32), group_size)
    step = (clip_ratio * grouped.detach().abs().amax(-1, keepdim=True) / highest).clamp_min(TINY)
    if values.dtype == torch.bfloat16:
        step = step + (step.bfloat16().float() - step).detach()
    # Times the reciprocal, as integer products are made: the codes must be the same.
    code = clamp(round_straight_through(grouped * step.reciprocal()), -highest - 1, highest)
    return _join(code * step, values.shape[-1], group_size).to(values.dtype)


def fake_quantize_tensor(values: Tensor, scale: Tensor, zero_point: Tensor, highest: Tensor) -> Tensor:
    """`s * (clamp(round(x / s) + z, 0, highest) - z)` with one scale and one integral zero point for all values.

    Differentiable in both, which are scalars, and straight-through in the values where they are in range.
    """
    rounded: Tensor = _TensorRounding.apply(values, scale, zero_point, highest)  # type: ignore[no-untyped-call]
    return rounded


class _TensorRounding(torch.autograd.Function):
    """By hand, because autograd would keep and pass over each of half a dozen intermediate tensors."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor, highest: Tensor) -> Tensor:
        ratio = values.float() / scale
        code = torch.minimum(torch.maximum(ratio.round(), -zero_point), highest - zero_point)
        if any(ctx.needs_input_grad):
            inside = (code - ratio).abs_() <= 0.5
            # How the result moves with the scale: by the rounding error in range, and by the code outside.
            ctx.save_for_backward(torch.where(inside, code - ratio, code), inside, scale)
        return (code * scale).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        by_scale, inside, scale = ctx.saved_tensors
        given = upstream.float()
        passed = given * inside
        outside = given.sum() - passed.sum()
        return passed.to(upstream.dtype), (given * by_scale).sum(), -scale * outside, None


@torch.no_grad()
def best_clip_ratio(values: Tensor, bits: int, importance: Tensor, group_size: int | None = None) -> float:
    """Return the share of the ranges that rounds `values`, `(tokens, in)`, with the least weighted squared error.

    `importance`, `(in,)`, weighs the channels: the squared norms of the columns that multiply them make the sum an
    estimate of the output error. Where two shares are as good, the wider one is taken.
    """
    best, least = 1.0, float("inf")
    highest = importance.new_tensor(float(highest_code(bits)))
    for clip_ratio in torch.linspace(1.0, NARROWEST, CANDIDATES, dtype=torch.float32):
        rounded = fake_quantize(values, clip_ratio.to(values.device), highest, group_size)
        error = float(((rounded - values).float().square() * importance).sum())
        if error < least:
            best, least = float(clip_ratio), error
    return best


class Sample(NamedTuple):
    """Some values of a tensor, `(n,)`, and for how many each stands, times what its error counts, `(n,)`."""

    values: Tensor
    weights: Tensor

    @classmethod
    def of(cls, rows: Tensor, importance: Tensor | None = None, count: int = 1 << 14) -> "Sample":
        """About `count` of `rows`, `(tokens, in)`: a quarter are the largest there are, the others evenly spaced.

        Without the largest a range would be placed as if there were none, which matters most where there are many bits.
        `importance`, `(in,)`, is what errors in a channel count.
        """
        values = rows.flatten().float()
        weights = torch.ones_like(rows) if importance is None else importance.expand_as(rows)
        weights = weights.flatten().float()
        if values.numel() <= count:
            return cls(values, weights)
        tail = torch.topk(values.abs(), count // 4, sorted=False).indices
        rest = torch.ones_like(values, dtype=torch.bool)
        rest[tail] = False
        bulk = rest.nonzero().squeeze(1)
        step = max(1, bulk.numel() // (count - count // 4))
        chosen = bulk[::step]
        standing = weights[chosen] * (bulk.numel() / chosen.numel())
        return cls(torch.cat([values[tail], values[chosen]]), torch.cat([weights[tail], standing]))

    @classmethod
    def joined(cls, parts: Sequence["Sample"]) -> "Sample":
        """Return samples of several parts as one of the whole."""
        return cls(torch.cat([part.values for part in parts]), torch.cat([part.weights for part in parts]))

    def quantiles(self, clip_ratios: Sequence[float]) -> list[float]:
        """Return the values below which these shares of all lie."""
        ordered, places = self.values.sort()
        reached = self.weights[places].double().cumsum(0)
        wanted = reached.new_tensor(list(clip_ratios)) * reached[-1]
        return [float(each) for each in ordered[torch.searchsorted(reached, wanted).clamp_max(len(ordered) - 1)]]


@torch.no_grad()
def best_range(sample: Sample, bits: int, extremes: Tensor, start: str) -> tuple[float, float]:
    """Return how far below and above zero an asymmetric range should go that rounds a tensor on one scale.

    `start` is "min-max", the `extremes`, `(2,)`, themselves; "percentile", those of `PERCENTILES` that round with the
    least squared error; or "search", the shares of the extremes that do, each side on its own.
    """
    lowest, highest = (float(each) for each in extremes)
    whole = (max(-lowest, 0.0), max(highest, 0.0))
    if start == "min-max" or sum(whole) <= TINY:
        return whole

    def error(extent: tuple[float, float]) -> float:
        return _range_error(sample, extent, bits)

    if start == "percentile":
        below, above = sample.quantiles([1 - p for p in PERCENTILES]), sample.quantiles(PERCENTILES)
        candidates = [(max(-low, 0.0), max(high, 0.0)) for low, high in zip(below, above, strict=True)]
        return min([candidate for candidate in candidates if sum(candidate) > TINY] or [whole], key=error)
    best = min(((whole[0] * clip_ratio, whole[1] * clip_ratio) for clip_ratio in CLIP_RATIOS), key=error)
    for _ in range(2):
        best = min(
            ((whole[0] * clip_ratio, best[1]) for clip_ratio in CLIP_RATIOS if whole[0] * clip_ratio + best[1] > TINY),
            key=error,
        )
        best = min(
            ((best[0], whole[1] * clip_ratio) for clip_ratio in CLIP_RATIOS if best[0] + whole[1] * clip_ratio > TINY),
            key=error,
        )
    return best


def _range_error(sample: Sample, extent: tuple[float, float], bits: int) -> float:
    """Return the weighted squared error of rounding on a range."""
    highest = 2**bits - 1
    scale = max(sum(extent) / highest, TINY)
    zero_point = round(extent[0] / scale)
    code = (sample.values / scale).round_().clamp_(-zero_point, highest - zero_point)
    return float(code.mul_(scale).sub_(sample.values).square_().mul_(sample.weights).sum())


def _split(values: Tensor, group_size: int | None) -> Tensor:
    if group_size is None or group_size >= values.shape[-1]:
        return values
    padding = -values.shape[-1] % group_size
    return F.pad(values, (0, padding)).reshape(*values.shape[:-1], -1, group_size)


def _join(grouped: Tensor, channels: int, group_size: int | None) -> Tensor:
    if group_size is None or group_size >= channels:
        return grouped
    return grouped.flatten(-2)[..., :channels]
