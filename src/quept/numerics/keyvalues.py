"""Quantization of keys and values (QuaRot, arXiv 2404.00456, section 4.3 and appendix A.3).

Every token has, for each head, a grid of its own: asymmetric, over the vector's range, which holds zero and is clipped
to 95 % of its ends at up to 4 bits; from 5 bits up that would cost more than it gains. The vectors are rotated before,
so that no channel stands out. What is stored is what is used: the scale is rounded to float16 before the codes are
taken. A product of a code and such a scale is exact in float32, so values read back from storage equal simulated ones
bit for bit, on every machine.

Shapes: values are `(..., size)`, a vector of one head in the last dimension; scale and zero point are `(..., 1)`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

# The positive numbers of float16: beyond them, a range is cut off, or all of it is nearer to zero than to a step.
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-24, 65504.0


class Quantized(NamedTuple):
    """Codes, `(..., size)` uint8; scale, `(..., 1)` float16; the code of zero, `(..., 1)` uint8."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor


def clip_ratio(bits: int) -> float:
    """Return the clip ratio of minimum and maximum at a bit-width."""
    return 0.95 if bits <= 4 else 1.0


def quantize(values: Tensor, bits: int) -> Quantized:
    """Finite values of any floating dtype, `(..., size)`, to codes of `bits` bits (2 to 8)."""
    steps, scale, zero_point = _steps(values, bits)
    return Quantized(steps.clamp_(0, 2**bits - 1).to(torch.uint8), scale, zero_point)


def dequantize(quantized: Quantized, dtype: torch.dtype) -> Tensor:
    """`scale * (code - zero_point)`, exact in float32, then rounded to `dtype`; `(..., size)`."""
    codes, scale, zero_point = quantized
    return codes.float().sub_(zero_point).mul_(scale.float()).to(dtype)


def fake_quantize(values: Tensor, bits: int) -> Tensor:
    """`dequantize(quantize(values, bits), values.dtype)`; the gradient is 1 inside the range and 0 outside.

    The equality is exact as PyTorch runs it. `torch.compile` leaves out the scale's rounding to float16, a relative
    2**-11, unless its option `emulate_precision_casts` is set.
    """
    result: Tensor = _FakeQuantize.apply(values, bits)  # type: ignore[no-untyped-call]
    return result


def _steps(values: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the codes before they are limited to the grid, float32; scale and zero point as they are stored."""
    maximum = 2**bits - 1
    values = values.float()
    low = values.amin(-1, keepdim=True).clamp_max(0) * clip_ratio(bits)
    high = values.amax(-1, keepdim=True).clamp_min(0) * clip_ratio(bits)
    stored_scale = ((high - low) / maximum).clamp(SMALLEST_SCALE, LARGEST_SCALE).half()
    scale = stored_scale.float()
    zero_point = (-low / scale).round().clamp(0, maximum)
    return (values / scale).round_().add_(zero_point), stored_scale, zero_point.to(torch.uint8)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, bits: int) -> Tensor:
        steps, scale, zero_point = _steps(values, bits)
        codes = steps.clamp(0, 2**bits - 1)
        ctx.save_for_backward(steps == codes)
        return dequantize(Quantized(codes.to(torch.uint8), scale, zero_point), values.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None
