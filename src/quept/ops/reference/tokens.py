"""Rounding activations with a scale per token."""

import torch
from torch import Tensor

from quept.formats.integers import ZERO, Tokens
from quept.numerics.hadamard import Rotation
from quept.ops.registry import operator

CHUNK = 2**19  # values quantized at a time: float32 that two cores keep in their second-level caches
TINY = torch.finfo(torch.float32).tiny  # below it a scale has lost digits


@operator
def quantize_tokens(x: Tensor, clip_ratio: Tensor, bits: int, rotation: Rotation | None = None) -> Tokens:
    """Quantize `x`, `(..., in)` of any float dtype, to `bits` (2 to 8) with a scale per token, in float32.

    `scale = clip_ratio * max|x| / (2**(bits - 1) - 1)`, `code = clamp(round(x * (1 / scale)))` to the signed integers
    of `bits` bits, halves to even; `clip_ratio` is a scalar tensor in (0, 1]. A scale is at least float32's smallest
    normal, so tokens of zeros have codes of zero; for `x` in bfloat16 it is rounded to bfloat16. A token that is not
    finite has a scale that is not, and codes of zero. With `rotation`, `rotate(x, rotation)` is quantized, in `x`'s
    dtype. `ValueError` for other `bits`.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"activations have 2 to 8 bits here, not {bits}")
    if rotation is not None:
        x = rotation(x)
    rows = x.reshape(-1, x.shape[-1])
    # Each operation is a pass over memory; in chunks that stay in the caches a pass costs a third.
    size = max(1, CHUNK // max(1, rows.shape[1]) if rows.device.type == "cpu" else len(rows))
    highest = 2 ** (bits - 1) - 1
    parts = [_quantize(part, clip_ratio, highest) for part in torch.split(rows, size)]
    codes, scale = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
    return Tokens(codes.view(torch.uint8), scale, x.shape[:-1])


def _quantize(rows: Tensor, clip_ratio: Tensor, highest: int) -> tuple[Tensor, Tensor]:
    """Return codes plus 128, as the bits of int8, and scales."""
    scale = (clip_ratio * _largest(rows) / highest).clamp_min(TINY)
    if rows.dtype == torch.bfloat16:
        scale = scale.bfloat16().float()
    # Times the reciprocal, because a vector of divisions takes as long as all the rest.
    steps = rows.to(torch.float32, copy=True).mul_(scale.reciprocal()).round_().clamp_(-highest - 1, highest)
    # Adding 128 flips the sign bit; conversion to uint8 itself is several times slower than to int8.
    return steps.to(torch.int8).bitwise_xor_(-ZERO), scale


def _largest(rows: Tensor) -> Tensor:
    """Return the largest magnitude of each row, float32 `(rows, 1)`."""
    magnitudes = rows.abs()
    if rows.element_size() == 2:
        # Positive floats are ordered as their bits are, and integers compare faster.
        return magnitudes.view(torch.int16).amax(-1, keepdim=True).view(rows.dtype).float()
    return magnitudes.amax(-1, keepdim=True).float()
