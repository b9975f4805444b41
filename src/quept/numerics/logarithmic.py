"""Rounding on a logarithmic grid, for probabilities (AdaLog, arXiv 2407.12951; RepQ-ViT, arXiv 2212.08254).

Attention's probabilities are many small values and a few large ones. Code `k` of `b` bits stands for
`s 2^(-k / q)`, the largest code for zero: levels are close together where values are small. `q`, how many of them there
are to each halving, is chosen per bit-width: few bits need to reach far, many can afford to be fine.
"""

from typing import Any

import torch
from torch import Tensor

from quept.numerics.activations import Sample

TINY = torch.finfo(torch.float32).tiny
DENSITIES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.3, 16.0)  # levels to a halving
CLIP_RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # of the largest value


def fake_quantize(values: Tensor, scale: Tensor, density: Tensor, highest: Tensor) -> Tensor:
    """`s 2^(-k / q)` with `k = clamp(round(-q log2(x / s)), 0, highest)`, and zero where `k` is `highest`.

    `scale`, `density` and `highest` are scalars. Values are not negative. Differentiable in scale and density with the
    codes as they are, and straight-through in values up to the scale.
    """
    rounded: Tensor = _LogRounding.apply(values, scale, density, highest)  # type: ignore[no-untyped-call]
    return rounded


@torch.no_grad()
def best_grid(sample: Sample, bits: int) -> tuple[float, float]:
    """Return the scale and density that round a sample with the least squared error; of equals the coarser."""
    values, weights = sample
    largest = float(values.max())
    if largest <= 0:
        return 1.0, 1.0
    highest = values.new_tensor(float(2**bits - 1))
    best, least = (largest, 1.0), float("inf")
    for clip_ratio in CLIP_RATIOS:
        for density in DENSITIES:
            scale = largest * clip_ratio
            rounded = fake_quantize(values, values.new_tensor(scale), values.new_tensor(density), highest)
            error = float((rounded - values).square().mul_(weights).sum())
            if error < least:
                best, least = (scale, density), error
    return best


class _LogRounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, density: Tensor, highest: Tensor) -> Tensor:
        ratio = values.float() / scale
        code = torch.minimum((ratio.clamp_min(TINY).log2() * -density).round_().clamp_min_(0), highest)
        level = torch.exp2(code / -density).masked_fill_(code == highest, 0)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(level, code, ratio <= 1, scale, density)
        return (level * scale).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        level, code, inside, scale, density = ctx.saved_tensors
        along = upstream.float() * level
        by_density = (along * code).sum() * scale * torch.log(scale.new_tensor(2.0)) / density.square()
        return upstream * inside, along.sum(), by_density, None
