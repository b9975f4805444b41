"""Linear layers in integers: activations quantized per token while the model runs, products of int8 summed in int32.

`y = x_scale * w_scale * sum_k qx[k] * (qw[k] - z) + bias`, with the codes of the activation symmetric around zero, one
scale per token, and the codes of the weight on an affine grid, one scale and zero point per output channel.

Two products are known, and both are checked on the device at hand before they are used: that they exist, and that they
are exact. Processors without VNNI or AMX saturate at sixteen bits on the way and are left out by that check.

- `onednn`: a weight packed for the processor, the scale of the channels applied inside. Public to `torch.compile`'s
  quantized models, not documented for others; its input is unsigned here because signed input has no fast
  implementation on processors without AMX.
- `int_mm`: `torch._int_mm`, plain int8 in and int32 out, on CPUs and CUDA devices.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, library
from torch.nn import functional as F

from quept.numerics import hadamard
from quept.ops import finish_rows, quantize_rows, rotate_and_quantize, takes

Backend = Literal["onednn", "int_mm"]

LARGEST_IN = (2**31 - 1) // (255 * 128)  # values whose products, one factor unsigned, sum within int32
ZERO = 128  # of the unsigned codes of activations, and of weights that span more than int8
CHUNK = 2**19  # values quantized at a time: float32 that two cores keep in their second-level caches
BLOCK = 2**22  # sums at a time: larger ones are new memory from the system each time, which takes longer to map
TINY = torch.finfo(torch.float32).tiny  # below it a scale has lost digits


@dataclass(frozen=True)
class Tokens:
    """A quantized activation, which every linear that reads it shares.

    `codes` are uint8 `(tokens, in)`, the integer code plus 128; `scale` is float32 `(tokens, 1)`; `leading` are the
    dimensions in front of the channels; `known_sums` are the `sums` once they were made, with the
    codes or later.
    """

    codes: Tensor
    scale: Tensor
    leading: torch.Size
    known_sums: Tensor | None = None

    @property
    def sums(self) -> Tensor:
        """Each token's sum of integer codes, float32 `(tokens, 1)`."""
        if self.known_sums is None:
            object.__setattr__(self, "known_sums", _sums(self.codes))
        assert self.known_sums is not None
        return self.known_sums


def quantize_tokens(x: Tensor, clip_ratio: Tensor, bits: int, rotation: hadamard.Rotation | None = None) -> Tokens:
    """Quantize `x`, `(..., in)` of any float dtype, to `bits` (2 to 8) with a scale per token, in float32.

    `scale = share * max|x| / (2**(bits - 1) - 1)`, `code = clamp(round(x * (1 / scale)))` to the signed integers of
    that width, halves to even; `share` is a scalar tensor in (0, 1]. A scale is at least float32's smallest normal,
    so tokens of zeros have codes of zero; for `x` in bfloat16 it is rounded to bfloat16. A token that is not finite
    has a scale that is not, and codes of zero. With `rotation`, what is quantized is `rotation(x)`, in `x`'s dtype.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"activations have 2 to 8 bits here, not {bits}")
    orders = () if rotation is None else rotation.orders
    if torch.compiler.is_compiling():
        codes, scale, sums = _operator(x, clip_ratio, bits, list(orders))
    else:
        codes, scale, sums = _quantize(x, clip_ratio, bits, orders)
    return Tokens(codes, scale, x.shape[:-1], sums)


def _quantize(
    x: Tensor, clip_ratio: Tensor, bits: int, orders: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes `(tokens, in)`, scales `(tokens, 1)`, and sums of codes like these where they cost nothing."""
    highest = 2 ** (bits - 1) - 1
    if takes(x):
        if not orders:
            return quantize_rows(x, clip_ratio.item(), highest)
        if plan := hadamard.plan(orders):
            return rotate_and_quantize(x, plan, clip_ratio.item(), highest)
    if orders:
        return _quantize(hadamard.Rotation(orders)(x), clip_ratio, bits, ())
    rows = x.reshape(-1, x.shape[-1])
    # Each operation is a pass over memory; in chunks that stay in the caches a pass costs a third.
    size = max(1, CHUNK // max(1, rows.shape[1]) if rows.device.type == "cpu" else len(rows))
    parts = [_quantized(part, clip_ratio, highest) for part in torch.split(rows, size)]
    codes, scale = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
    return codes.view(torch.uint8), scale, None


@library.custom_op("quept::quantize_tokens", mutates_args=())
def _operator(x: Tensor, clip_ratio: Tensor, bits: int, orders: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    codes, scale, sums = _quantize(x, clip_ratio, bits, tuple(orders))
    return codes, scale, _sums(codes) if sums is None else sums


@_operator.register_fake
def _(x: Tensor, clip_ratio: Tensor, bits: int, orders: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    tokens = x.numel() // x.shape[-1]
    codes = x.new_empty((tokens, x.shape[-1]), dtype=torch.uint8)
    scale = x.new_empty((tokens, 1), dtype=torch.float32)
    return codes, scale, torch.empty_like(scale)


@dataclass(frozen=True)
class IntegerWeight:
    """The weight `(out, in)` of a linear layer as the product `backend` wants it.

    `packed` holds `qw - z` as int8 where that fits every weight, else `qw - 128`, and then `shift`, float32
    `(1, out)`, is what each unit of a token's sum of codes adds: `(128 - z) * scale`. `scale` is float32 `(out,)`.
    """

    packed: Tensor
    scale: Tensor
    shift: Tensor | None
    shape: tuple[int, int]
    backend: Backend

    @classmethod
    def of(
        cls, codes: Tensor, scale: Tensor, zero_point: Tensor, device: torch.device, backend: Backend | None = None
    ) -> "IntegerWeight":
        """From uint8 codes `(out, in)`, scales `(out,)` and integral zero points `(out,)` from 0 to 255.

        `backend` is the first that the device has unless it is given. `ValueError` if sums could leave int32 or the
        device does not have the product.
        """
        if codes.shape[1] > LARGEST_IN:
            raise ValueError(f"int32 holds sums over at most {LARGEST_IN} inputs, not {codes.shape[1]}")
        usable = [known for known in backends(device.type) if backend in (None, known)]
        if not usable:
            raise ValueError(f"{device} has no exact integer product{f' {backend}' if backend else ''}")
        return cls._made(codes, scale, zero_point, device, usable[0])

    @classmethod
    def _made(
        cls, codes: Tensor, scale: Tensor, zero_point: Tensor, device: torch.device, backend: Backend
    ) -> "IntegerWeight":
        scale = scale.to(device, torch.float32).contiguous()
        zero_point = zero_point.to(device, torch.int16)
        signed, shift = codes.to(device, torch.int16) - zero_point.unsqueeze(1), None
        if signed.numel() and (signed.amin() < -128 or signed.amax() > 127):
            signed = codes.to(device, torch.int16) - ZERO
            shift = ((ZERO - zero_point) * scale).unsqueeze(0)
        packed = signed.to(torch.int8)
        if backend == "onednn":
            packed = torch.ops.onednn.qlinear_prepack(packed, None)
        else:
            packed = F.pad(packed, (0, -packed.shape[1] % 8, 0, -packed.shape[0] % 8))
        return cls(packed, scale, shift, (codes.shape[0], codes.shape[1]), backend)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, scales and shifts; the packing's own filling, a few percent at most, is not counted."""
        vectors = self.scale.nbytes + (0 if self.shift is None else self.shift.nbytes)
        return self.shape[0] * self.shape[1] + vectors


def integer_linear(
    tokens: Tokens,
    weight: IntegerWeight,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The product of a quantized activation and a weight, `(..., out)` in `dtype`; `bias` is `(out,)`.

    The sum is exact in int32. Scales, shift and bias are applied in float32, and rounded to `dtype` at the end, or in a
    narrower `dtype` after every step where there is no shift.
    """
    if tokens.codes.shape[1] != weight.shape[1]:
        raise ValueError(f"the activation has {tokens.codes.shape[1]} channels, the weight {weight.shape[1]}")
    size = max(1, BLOCK // weight.shape[0])
    sums = tokens.scale if weight.shift is None else tokens.sums  # without a shift they are not read
    # Where nothing is to be taken from it, the product may be rounded at once: one pass less over wide results.
    first = dtype if weight.shift is None else torch.float32

    def multiplied(codes: Tensor, scale: Tensor, sums: Tensor) -> Tensor:
        return _finished(_product(codes, weight, first), scale, sums, weight.shift, bias, dtype)

    each = tokens.codes, tokens.scale, sums
    if len(tokens.codes) <= size:
        result = multiplied(*each)
    else:
        result = torch.cat(
            [multiplied(*part) for part in zip(*(torch.split(whole, size) for whole in each), strict=True)]
        )
    return result.reshape(*tokens.leading, weight.shape[0])


def supported(device: torch.device) -> bool:
    """Whether the device has an exact integer product."""
    return bool(backends(device.type))


@cache
def backends(kind: str) -> tuple[Backend, ...]:
    """The products that exist on this kind of device and are exact there, the faster one first."""
    known: tuple[Backend, ...] = ("onednn", "int_mm") if kind == "cpu" else ("int_mm",)
    return tuple(backend for backend in known if _exact(backend, torch.device(kind)))


def _exact(backend: Backend, device: torch.device) -> bool:
    """Whether sums of the largest products come out right; those that saturate on the way do not."""
    signs = torch.ones(32, 256, dtype=torch.int16, device=device)
    signs[::2, ::3] = signs[1::4] = -1
    codes = (signs * 255 + 255).div(2).to(torch.uint8)  # 0 and 255
    tokens = Tokens(codes, torch.ones(32, 1, device=device), torch.Size([32]))
    ones = torch.ones(32, device=device)
    try:
        weight = IntegerWeight._made(codes, ones, ones * ZERO, device, backend)
        result = integer_linear(tokens, weight)
    except (AttributeError, RuntimeError, NotImplementedError):  # absent, or not for this device
        return False
    values = codes.to(torch.float64) - ZERO
    return torch.equal(result.to(torch.float64), values @ values.T)


def _product(codes: Tensor, weight: IntegerWeight, dtype: torch.dtype) -> Tensor:
    """Sums times the weight's scale, `(tokens, out)` in `dtype`, a tensor of its own."""
    if weight.backend == "onednn" and dtype in (torch.float32, torch.bfloat16):
        return _onednn(codes, weight, dtype)
    return (_onednn(codes, weight, torch.float32) if weight.backend == "onednn" else _int_mm(codes, weight)).to(dtype)


def _onednn(codes: Tensor, weight: IntegerWeight, dtype: torch.dtype) -> Tensor:
    result: Tensor = torch.ops.onednn.qlinear_pointwise(
        *(codes, 1.0, ZERO),
        *(weight.packed, weight.scale, torch.zeros(weight.shape[0], dtype=torch.int32)),
        None,  # a bias here would be scaled with the token
        *(1.0, 0, dtype),
        *("none", [], ""),
    )
    return result


def _int_mm(codes: Tensor, weight: IntegerWeight) -> Tensor:
    # CUDA wants more than 16 rows and multiples of eight; on a CPU the product of one input channel is wrong.
    rows, least = len(codes), 17 if codes.device.type == "cuda" else 0
    codes = F.pad(codes.view(torch.int8) ^ -ZERO, (0, -codes.shape[1] % 8, 0, max(least - len(codes), 0)))
    sums = torch._int_mm(codes, weight.packed.T)
    return sums[:rows, : weight.shape[0]] * weight.scale


def _quantized(rows: Tensor, clip_ratio: Tensor, highest: int) -> tuple[Tensor, Tensor]:
    """Codes plus 128, as the bits of int8, and scales."""
    scale = (clip_ratio * _largest(rows) / highest).clamp_min(TINY)
    if rows.dtype == torch.bfloat16:
        scale = scale.bfloat16().float()
    # Times the reciprocal, because a vector of divisions takes as long as all the rest.
    steps = rows.to(torch.float32, copy=True).mul_(scale.reciprocal()).round_().clamp_(-highest - 1, highest)
    # Adding 128 flips the sign bit; conversion to uint8 itself is several times slower than to int8.
    return steps.to(torch.int8).bitwise_xor_(-ZERO), scale


def _largest(rows: Tensor) -> Tensor:
    """The largest magnitude of each row, float32 `(rows, 1)`."""
    magnitudes = rows.abs()
    if rows.element_size() == 2:
        # Positive floats are ordered as their bits are, and integers compare faster.
        return magnitudes.view(torch.int16).amax(-1, keepdim=True).view(rows.dtype).float()
    return magnitudes.amax(-1, keepdim=True).float()


def _sums(codes: Tensor) -> Tensor:
    return (codes.sum(-1, keepdim=True, dtype=torch.int32) - ZERO * codes.shape[1]).float()


def _finished(
    product: Tensor, scale: Tensor, sums: Tensor, shift: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Shift, scale of the tokens, and bias, in place."""
    # A compiler makes one pass of these steps itself.
    if dtype in (torch.float32, torch.bfloat16) and not torch.compiler.is_compiling() and takes(product):
        return finish_rows(product, scale, sums, shift, bias, dtype)
    if shift is not None:
        product.addcmul_(sums, shift)
    product.mul_(scale.to(product.dtype))
    if bias is not None:
        product.add_(bias.to(product.dtype))
    return product.to(dtype)
