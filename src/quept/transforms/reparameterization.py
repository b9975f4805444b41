"""LayerNorm reparameterisation (RepQ-ViT, arXiv 2212.08254): one scale per tensor where each channel wants its own.

Behind a norm, channels differ much in where their values lie and how far they spread. Each is shifted and scaled to the
range that all have on average; the norm's weight and bias make it so, and the linears that read it undo it: with
`x = r x' + t`, `W x + b = (W r) x' + (b + W t)`. The shift is left out where a linear has no bias to
take it in, or where zeros are put beside what the norm gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quept.architectures import Place, Site
from quept.nn.elastic import weight_of
from quept.transforms.base import Moved, Transform

COVERED = 0.999  # of a channel's values lie in its range; the rest are outliers, which steps should not follow
LEAST = 1e-3  # of the average spread: narrower channels are taken for that wide, lest weights become tiny


@dataclass(frozen=True)
class Reparameterize(Transform):
    """Reparameterisation of every norm whose outputs only linears read."""

    def watches(self, place: Place) -> frozenset[str]:
        """One consumer of each norm."""
        return frozenset(site.consumers[0] for site in _norms(place))

    @torch.no_grad()
    def fold(self, block: nn.Module, place: Place, inputs: Mapping[str, Tensor]) -> Mapping[str, Moved]:
        """Measure each channel's range, and move what differs from the average into the norm and its consumers."""
        moved = {}
        for site in _norms(place):
            norm: Any = block.get_submodule(site.producer)
            consumers: list[Any] = [block.get_submodule(path) for path in site.consumers]
            biased = all(getattr(each, "bias", None) is not None for each in (norm, *consumers)) and site.shifts
            scale, shift = common_range(inputs[site.consumers[0]].float(), shifted=biased)
            offset = place.architecture.norm_offset
            norm.weight.copy_((norm.weight + offset) / scale - offset)
            if getattr(norm, "bias", None) is not None:
                norm.bias.copy_((norm.bias - shift) / scale)
            for path, linear in zip(site.consumers, consumers, strict=True):
                if biased:
                    linear.bias.add_((weight_of(linear).double() @ shift.double()).to(linear.bias.dtype))
                weight_of(linear).mul_(scale)
                moved[path] = Moved(scale, shift)
        return moved


def common_range(rows: Tensor, shifted: bool) -> tuple[Tensor, Tensor]:
    """The scale `r` and shift `t`, `(in,)`, with which `(x - t) / r` has one range in all channels of `(tokens, in)`.

    That range is the average of the channels' own in place and width. Without a shift it is only as wide.
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


def _norms(place: Place) -> list[Site]:
    architecture = place.architecture
    return [site for site in architecture.sites_for(place.config) if not architecture.is_linear(site.producer)]
