"""Settings of the transforms that prepare a block for rounding without changing its output."""

from typing import Annotated, Literal

from pydantic import Field

from quept.config.base import Value
from quept.config.bits import Bits


class Smoothing(Value):
    """AWQ-style smoothing: a grid of exponents, searched for the least output error at `bits`."""

    enabled: bool = True
    bits: tuple[Bits, ...] = (2, 3, 4)
    grid: Annotated[int, Field(ge=1, le=200)] = 20
    tokens: Annotated[int, Field(ge=1)] = 512


class Rotation(Value):
    """QuaRot: Hadamard rotations that spread outliers over all channels, folded into weights where that is possible.

    Each head's values are rotated in the weights. With `across_heads` attention's outputs are rotated over all heads as
    well, as the model runs.
    """

    enabled: bool = False
    across_heads: bool = False


class Reparameterization(Value):
    """RepQ-ViT: channels behind a norm get one range in common, folded into the norm and the linears that read it.

    `strength` is how far they go towards it, 1 for all the way; "search" takes for each norm what rounds with the least
    output error over all widths, since what makes activations alike makes the weights that meet them unlike.
    """

    enabled: bool = False
    strength: Annotated[float, Field(gt=0, le=1)] | Literal["search"] = 1.0
