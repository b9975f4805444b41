"""Rounding of activations per token: symmetric, on a range that every token brings along (method, section 2).

Values are `(..., in)`. All of a token's `in` values share a range, or every `group_size` of them, the last group being
shorter where `in` is no multiple. All arithmetic is float32; results have the dtype of the values.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from quept.numerics.affine import round_straight_through

TINY = torch.finfo(torch.float32).tiny  # below it a scale has lost digits, and its reciprocal may be infinite
NARROWEST, CANDIDATES = 0.4, 25  # shares from the whole range down, 0.025 apart


def highest_code(bits: int) -> int:
    """The highest code of a signed width; the lowest is one below its negative."""
    return int(2 ** (bits - 1) - 1)


def fake_quantize(values: Tensor, share: Tensor, highest: Tensor, group_size: int | None = None) -> Tensor:
    """`s * clamp(round(x / s), -highest - 1, highest)` with `s = share * max|x| / highest` of the token's range.

    `share`, in (0, 1], and `highest` are scalars. Differentiable in the share, and straight-through in the values, for
    which each range counts as a constant. A range of zeros stays zero. For values in bfloat16 the scale is one, too, so
    that multiplying by it is the only rounding.
    """
    grouped = _split(values.to(torch.float32), group_size)
    step = (share * grouped.detach().abs().amax(-1, keepdim=True) / highest).clamp_min(TINY)
    if values.dtype == torch.bfloat16:
        step = step + (step.bfloat16().float() - step).detach()
    # Times the reciprocal, as integer products are made: the codes must be the same.
    code = round_straight_through(grouped * step.reciprocal()).clamp(-highest - 1, highest)
    return _join(code * step, values.shape[-1], group_size).to(values.dtype)


@torch.no_grad()
def best_share(values: Tensor, bits: int, importance: Tensor, group_size: int | None = None) -> float:
    """The share of the ranges that rounds `values`, `(tokens, in)`, with the least weighted squared error.

    `importance`, `(in,)`, weighs the channels: the squared norms of the columns that multiply them make the sum an
    estimate of the output error. Where two shares are as good, the wider one is taken.
    """
    best, least = 1.0, float("inf")
    highest = importance.new_tensor(float(highest_code(bits)))
    for share in torch.linspace(1.0, NARROWEST, CANDIDATES):
        rounded = fake_quantize(values, share.to(values.device), highest, group_size)
        error = float(((rounded - values).float().square() * importance).sum())
        if error < least:
            best, least = float(share), error
    return best


def _split(values: Tensor, group_size: int | None) -> Tensor:
    if group_size is None or group_size >= values.shape[-1]:
        return values
    padding = -values.shape[-1] % group_size
    return F.pad(values, (0, padding)).reshape(*values.shape[:-1], -1, group_size)


def _join(grouped: Tensor, channels: int, group_size: int | None) -> Tensor:
    if group_size is None or group_size >= channels:
        return grouped
    return grouped.flatten(-2)[..., :channels]
