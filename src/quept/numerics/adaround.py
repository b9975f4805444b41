"""The adapter as a rounding policy: `floor(W / s) + h`, with `h` learned between 0 and 1 (CBQ, after AdaRound)."""

import torch
from torch import Tensor

from quept.numerics.affine import Grid, clamp

# Stretch of the rectified sigmoid (AdaRound, eq. 23): it reaches 0 and 1 at finite inputs.
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1


def rectified_sigmoid(logit: Tensor) -> Tensor:
    """Return a sigmoid stretched over (-0.1, 1.1) and clamped to [0, 1]."""
    return clamp(torch.sigmoid(logit) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW, 0, 1)


def rounding_logit(grouped: Tensor, to: Grid, adapter: Tensor) -> tuple[Tensor, Tensor]:
    """`floor(W / s)` and the logit of rounding up.

    The logit of the fraction is the starting point, so that a zero adapter means rounding to nearest: without it
    `h` would start at one half for every weight, and the codes before training would be arbitrary.
    """
    ratio = grouped / to.scale
    floor = ratio.floor()
    fraction = (ratio - floor).detach()
    start = torch.logit((fraction - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW))
    return floor.detach(), start + adapter


def soft_round(grouped: Tensor, to: Grid, adapter: Tensor) -> tuple[Tensor, Tensor]:
    """Return the dequantized weight with soft rounding, and `h` itself; differentiable in the scale and the adapter."""
    floor, logit = rounding_logit(grouped, to, adapter)
    up = rectified_sigmoid(logit)
    code = clamp(floor + up + to.zero_point, 0, to.maximum)
    return (code - to.zero_point) * to.scale, up


def hard_offset(grouped: Tensor, to: Grid, adapter: Tensor) -> Tensor:
    """Return the offset in steps with which `fake_quantize` rounds by the policy: up where the logit is positive."""
    floor, logit = rounding_logit(grouped, to, adapter)
    return floor + (logit >= 0).to(floor.dtype) - grouped / to.scale


def undecided(up: Tensor, sharpness: float) -> Tensor:
    """AdaRound's regulariser, the mean of `1 - |2h - 1|**sharpness`: zero once every weight has chosen."""
    return (1 - (2 * up - 1).abs().pow(sharpness)).mean()
