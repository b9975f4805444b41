"""PyTorch's custom operators, for compilers: in the place of operators whose kernels a compiler cannot look into.

Their arguments are tensors and numbers, which the operator's own arguments are made of again as the code runs.
"""

from typing import Any

import torch
from torch import Tensor, library

from quept.formats.integers import Tokens
from quept.formats.packed import PackedWeight
from quept.numerics.hadamard import Rotation
from quept.ops import reference


def register() -> None:
    """Let compilers use these functions."""
    reference.rotate.traced = _trace_rotate
    reference.quantize_tokens.traced = _trace_quantize_tokens
    reference.packed_linear.traced = _trace_packed_linear


def _trace_rotate(values: Tensor, rotation: Rotation, inverse: bool = False) -> Tensor:
    rotated: Tensor = _rotate(values, list(rotation.orders), inverse)
    return rotated


@library.custom_op("quept::rotate", mutates_args=())
def _rotate(values: Tensor, orders: list[int], inverse: bool) -> Tensor:
    rotated = reference.rotate(values, Rotation(tuple(orders)), inverse)
    return rotated.clone() if rotated is values else rotated


@_rotate.register_fake
def _(values: Tensor, orders: list[int], inverse: bool) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _remember(ctx: Any, inputs: tuple[Tensor, list[int], bool], output: Tensor) -> None:
    _, ctx.orders, ctx.inverse = inputs


def _rotate_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return _rotate(gradient, ctx.orders, not ctx.inverse), None, None


_rotate.register_autograd(_rotate_backward, setup_context=_remember)


def _trace_quantize_tokens(x: Tensor, clip_ratio: Tensor, bits: int, rotation: Rotation | None = None) -> Tokens:
    orders = [] if rotation is None else list(rotation.orders)
    codes, scale, sums = _quantize_tokens(x, clip_ratio, bits, orders)
    return Tokens(codes, scale, x.shape[:-1], sums)


@library.custom_op("quept::quantize_tokens", mutates_args=())
def _quantize_tokens(x: Tensor, clip_ratio: Tensor, bits: int, orders: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    tokens = reference.quantize_tokens(x, clip_ratio, bits, Rotation(tuple(orders)) if orders else None)
    return tokens.codes, tokens.scale, tokens.sums


@_quantize_tokens.register_fake
def _(x: Tensor, clip_ratio: Tensor, bits: int, orders: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    tokens = x.numel() // x.shape[-1]
    codes = x.new_empty((tokens, x.shape[-1]), dtype=torch.uint8)
    scale = x.new_empty((tokens, 1), dtype=torch.float32)
    return codes, scale, torch.empty_like(scale)


def _trace_packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, exact: bool = False) -> Tensor:
    held = weight.codes, weight.scale, weight.row_scale, weight.zero_point
    result: Tensor = _packed_linear(x, *held, bias, weight.bits, weight.inputs_per_scale, exact)
    return result


@library.custom_op("quept::packed_linear", mutates_args=())
def _packed_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor | None,
    row_scale: Tensor,
    zero_point: Tensor,
    bias: Tensor | None,
    bits: int,
    inputs_per_scale: int,
    exact: bool,
) -> Tensor:
    shape = (len(codes), x.shape[-1])
    weight = PackedWeight(shape, bits, inputs_per_scale, codes, scale, row_scale, zero_point)
    return reference.packed_linear(x, weight, bias, exact=exact)


@_packed_linear.register_fake
def _(x: Tensor, codes: Tensor, *others: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(codes))
