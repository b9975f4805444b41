"""Learned rounding (after SignRound, arXiv 2309.05516): an offset of at most half a step for each weight."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from quept.calibration.methods.base import ParameterGroup, RoundingMethod, Start, Weight
from quept.calibration.optimizer import NORMALIZED_DESCENT
from quept.config import Reconstruction
from quept.numerics import affine
from quept.numerics.affine import Grid

TRAVEL = 1.5  # quantization steps, if every draw were as long as the first; they shrink, so half of it at most
FASTEST = 1 / 50  # of a quantization step: a few steps that are longer would flip weights at random


class LearnedRounding(RoundingMethod):
    """Offsets in steps, zero at the start, `(out, groups, inputs)` float32 for each bit-width."""

    def __init__(self, weight: Weight) -> None:
        super().__init__(weight)
        self.offsets: dict[int, nn.Parameter] = {}
        self.min_max: dict[int, tuple[Tensor, Tensor]] = {}  # of each group; the master does not change any more

    @torch.no_grad()
    def init(self, start: Start) -> None:
        """Start where rounding is to nearest."""
        for bits in self.bits:
            grouped = affine.split_groups(self.weight.float_master(), self.weight.inputs_per_scale(bits))
            self.offsets[bits] = nn.Parameter(torch.zeros_like(grouped))
            self.min_max[bits] = affine.min_max(grouped)

    def parameters(self, settings: Reconstruction, draws: Mapping[int, float]) -> Iterable[ParameterGroup]:
        """Return the offsets of each bit-width, whose rate depends on how often it is drawn."""
        for bits, offset in self.offsets.items():
            given = settings.rounding_learning_rate
            # A bit-width that is never drawn has no gradient, whatever its rate.
            rate = min(FASTEST, TRAVEL / max(1.0, draws.get(bits, 0.0))) if given == "auto" else given
            yield ParameterGroup(NORMALIZED_DESCENT, rate, [offset])

    def offset(self, bits: int, grouped: Tensor, grid: Grid) -> Tensor:
        """Return the offsets."""
        return self.offsets[bits]

    def state(self) -> Iterable[Tensor]:
        """Return the offsets, and each group's minimum and maximum."""
        return [*self.offsets.values(), *(end for ends in self.min_max.values() for end in ends)]
