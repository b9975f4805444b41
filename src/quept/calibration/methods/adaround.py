"""Low-rank factors as a rounding policy: `floor(W / s) + h`, with `h` learned between 0 and 1 (CBQ, after AdaRound)."""

from torch import Tensor

from quept.calibration.methods.base import Draft, Weight
from quept.calibration.methods.low_rank import LowRank
from quept.numerics import adaround, affine
from quept.numerics.affine import Grid

# The regulariser of AdaRound: its weight in the loss, and how its sharpness falls over the training.
PENALTY_WEIGHT = 0.01
FIRST_SHARPNESS, LAST_SHARPNESS = 20.0, 2.0


class AdaRound(LowRank):
    """The logits of rounding up are a low-rank product. While they train, weights are rounded softly."""

    def __init__(self, weight: Weight) -> None:
        super().__init__(weight)
        self._up: Tensor | None = None

    def apply(self, draft: Draft) -> None:
        """Round softly."""
        self._up = None
        adapter = self.product(draft.bits)
        if adapter is None:
            return
        steps = affine.split_groups(adapter, self.weight.inputs_per_scale(draft.bits))

        def soften(grouped: Tensor, grid: Grid) -> Tensor:
            soft, self._up = adaround.soft_round(grouped, grid, steps)
            return soft

        draft.dequantize = soften

    def penalty(self, progress: float) -> Tensor | None:
        """Return AdaRound's regulariser, which drives every weight to round up or down."""
        if self._up is None:
            return None
        sharpness = FIRST_SHARPNESS + (LAST_SHARPNESS - FIRST_SHARPNESS) * progress
        return PENALTY_WEIGHT * adaround.undecided(self._up, sharpness)
