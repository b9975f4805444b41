"""LayerNorm reparameterization (RepQ-ViT, arXiv 2212.08254): channels with one range, so that one scale suits a tensor.

Channels behind a norm differ much in the position and the spread of their values. Each is shifted and scaled to the
average range of all; this is folded into the norm's weight and bias, and the linears that read the norm undo it: with
`x = r x' + t`, `W x + b = (W r) x' + (b + W t)`. There is no shift where a linear has no bias to take it in, or where
zeros are added beside the norm's outputs.

The columns of the weights are multiplied by `r`, which makes them harder to round. A search may therefore choose a
strength `p` from 0 to 1 for each norm: scale `r ** p` and shift `p t`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quept.config import Recipe
from quept.layers.linear import weight_of
from quept.models import BlockContext, Site
from quept.numerics import affine
from quept.numerics.activations import TINY, Sample, best_range, fake_quantize_tensor
from quept.transforms.base import FoldedInput, Transform

COVERED = 0.999  # quantile at which a channel's range ends on either side; values beyond are outliers
LEAST = 1e-3  # smallest scale, as a fraction of the average spread: smaller ones would make weights tiny
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # candidates of a search
SEARCHED = 512  # rows that a search tries the strengths on


@dataclass(frozen=True)
class Reparameterize(Transform):
    """Reparameterization of every norm whose outputs only linears read; settings are those of a recipe."""

    recipe: Recipe

    def observed_inputs(self, context: BlockContext) -> frozenset[str]:
        """Return one consumer of each norm."""
        return frozenset(site.consumers[0] for site in _norms(context))

    @torch.no_grad()
    def fold(self, block: nn.Module, context: BlockContext, inputs: Mapping[str, Tensor]) -> Mapping[str, FoldedInput]:
        """Measure each channel's range, and fold its difference from the average into the norm and its consumers."""
        moved = {}
        for site in _norms(context):
            norm: Any = block.get_submodule(site.producer)
            consumers: list[Any] = [block.get_submodule(path) for path in site.consumers]
            biased = all(getattr(each, "bias", None) is not None for each in (norm, *consumers)) and site.shifts
            weights = torch.cat([weight_of(linear).float() for linear in consumers])
            scale, shift = self._chosen(inputs[site.consumers[0]].float(), weights, shifted=biased)
            offset = context.architecture.norm_offset
            norm.weight.copy_((norm.weight + offset) / scale - offset)
            if getattr(norm, "bias", None) is not None:
                norm.bias.copy_((norm.bias - shift) / scale)
            for path, linear in zip(site.consumers, consumers, strict=True):
                if biased:
                    linear.bias.add_((weight_of(linear).double() @ shift.double()).to(linear.bias.dtype))
                weight_of(linear).mul_(scale)
                moved[path] = FoldedInput(scale, shift)
        return moved

    def _chosen(self, rows: Tensor, weights: Tensor, shifted: bool) -> tuple[Tensor, Tensor]:
        """Return scale and shift, `(in,)`, for input rows `(tokens, in)` of weights `(out, in)`."""
        scale, shift = common_range(rows, shifted)
        strength = self.recipe.reparameterization.strength
        if strength == "search":
            few = rows[:: max(1, len(rows) // SEARCHED)]
            errors = torch.stack(
                [self._errors((few - power * shift) / scale**power, weights * scale**power) for power in STRENGTHS]
            )
            # Relative to strength 0, so that every bit-width counts alike; the weaker of two that are equally good.
            strength = STRENGTHS[int((errors / errors[0].clamp_min(TINY)).sum(1).argmin())]
        return scale**strength, strength * shift

    def _errors(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the mean squared error of `rows @ weights.T` at each bit-width, both rounded, `(bit-widths,)`."""
        exact, errors = rows @ weights.T, []
        sample, extremes = Sample.of(rows, count=SEARCHED * 8), torch.stack(rows.aminmax())
        for bits in self.recipe.bits:
            grouped = weights.unsqueeze(1)
            rounded = affine.fake_quantize(grouped, affine.grid(grouped, bits)).squeeze(1)
            given = rows
            if activation_bits := self.recipe.activations.bits_for(bits):
                below, above = best_range(sample, activation_bits, extremes, "search")
                highest = rows.new_tensor(2.0**activation_bits - 1)
                step = ((below + above) / highest).clamp_min(TINY)
                given = fake_quantize_tensor(rows, step, (below / step).round(), highest)
            errors.append((given @ rounded.T - exact).square().mean())
        return torch.stack(errors)


def common_range(rows: Tensor, shifted: bool) -> tuple[Tensor, Tensor]:
    """Return scale `r` and shift `t`, `(in,)`, with which `(x - t) / r` has one range in all channels of `rows`.

    Its center and spread are the averages over the channels; without a shift, its spread only.

    Args:
        rows: Input rows, `(tokens, in)`.
        shifted: Whether to shift; otherwise `t` is zero.
    """
    ordered = rows.sort(0).values
    last = len(rows) - 1
    low, high = ordered[round((1 - COVERED) * last)], ordered[round(COVERED * last)]
    if not shifted:
        reach = torch.maximum(low.abs(), high.abs())
        return _over_mean(reach), torch.zeros_like(low)
    scale = _over_mean(high - low)
    middle = (low + high) / 2
    return scale, middle - scale * middle.mean()


def _over_mean(spread: Tensor) -> Tensor:
    mean = spread.mean()
    if float(mean) == 0:
        return torch.ones_like(spread)
    return (spread / mean).clamp_min(LEAST)


def _norms(context: BlockContext) -> list[Site]:
    architecture = context.architecture
    return [site for site in architecture.sites_for(context.config) if not architecture.is_linear(site.producer)]
