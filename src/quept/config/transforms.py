"""Settings of the transforms that prepare a block for rounding without changing its output."""

from typing import Annotated, Literal

from pydantic import Field

from quept.config.base import Value
from quept.config.bits import Bits


class Smoothing(Value):
    """AWQ-style smoothing: scales per channel that lower the rounding error, folded into the weights."""

    enabled: bool = True
    """Whether to smooth. Source: AWQ (arXiv 2306.00978), which the paper applies before calibration."""

    bits: tuple[Bits, ...] = (2, 3, 4)
    """Bit-widths whose summed error the search lowers; those not calibrated are passed over. Source: quept."""

    grid: Annotated[int, Field(strict=True, ge=1, le=200)] = 20
    """Number of exponents tried. Source: AWQ, eq. 5, and its published code."""

    tokens: Annotated[int, Field(strict=True, ge=1)] = 512
    """Input rows that the search sees. Source: AWQ, published code."""


class Rotation(Value):
    """QuaRot: Hadamard rotations that spread outliers over all channels, folded into weights where that is possible."""

    enabled: bool = False
    """Whether to rotate. Source: QuaRot (arXiv 2404.00456)."""

    across_heads: bool = False
    """Also rotate attention's outputs over all heads, as the model runs; each head's values are rotated in any case.
    Source: QuaRot, attention's output projection."""


class Reparameterization(Value):
    """RepQ-ViT: one range for all channels behind a norm, folded into the norm and the linears that read it."""

    enabled: bool = False
    """Whether to reparameterize. Source: RepQ-ViT (arXiv 2212.08254)."""

    strength: Annotated[float, Field(strict=True, gt=0, le=1)] | Literal["search"] = 1.0
    """How far channels move towards the common range, 1 for all the way; `search` takes for each norm the strength with
    the least output error over all bit-widths, since equal activations make weights unequal. Source: 1, RepQ-ViT;
    `search`, quept, docs/results.md."""
