"""Kernels that round tokens, and finish products of integers."""

from functools import partial
from types import NotImplementedType

import torch
from torch import Tensor

from quept.formats.dtypes import NUMBERS
from quept.formats.integers import Tokens
from quept.numerics.hadamard import Rotation
from quept.ops.cpu import extension
from quept.ops.cpu.rotation import steps_of
from quept.ops.cpu.tensors import ROW_TYPES, addresses, described, rows_of, takes_rows


def quantize_tokens(
    x: Tensor, clip_ratio: Tensor, bits: int, rotation: Rotation | None = None
) -> Tokens | NotImplementedType:
    """`ops.quantize_tokens` of float32 and bfloat16; with a rotation, rotates without writing what is between."""
    if not 2 <= bits <= 8 or not takes_rows(x):
        return NotImplemented
    run = extension.native().quantize
    if rotation is not None:
        steps = steps_of(rotation) if x.shape[-1] == rotation.size else None
        if steps is None:
            return NotImplemented
        run = partial(extension.native().rotate_and_quantize, steps)
    rows = rows_of(x)
    codes, scale = torch.empty(rows.shape, dtype=torch.uint8), torch.empty(rows.shape[0], 1, dtype=torch.float32)
    sums = torch.empty_like(scale)
    if rows.numel():
        highest = 2 ** (bits - 1) - 1
        run(*described(rows), clip_ratio.item(), highest, *addresses(codes, scale, sums), torch.get_num_threads())
    return Tokens(codes, scale, x.shape[:-1], sums)


def finish_product(
    product: Tensor, scale: Tensor, sums: Tensor | None, shift: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor | NotImplementedType:
    """`ops.finish_product` from and to float32 and bfloat16, in float32; overwrites a product of that dtype."""
    if dtype not in ROW_TYPES or product.dim() != 2 or not product.is_contiguous() or not takes_rows(product):
        return NotImplemented
    tokens, out_features = product.shape
    vectors = []
    for values, shape in zip(
        (scale, sums, shift, bias), ((tokens, 1), (tokens, 1), (1, out_features), (out_features,)), strict=True
    ):
        if values is not None and (values.shape != shape or not values.is_cpu):
            return NotImplemented
        vectors.append(None if values is None else values.to(torch.float32).contiguous())
    if shift is not None and sums is None:
        return NotImplemented
    result = product if product.dtype == dtype else torch.empty_like(product, dtype=dtype)
    if product.numel():
        extension.native().finish(
            *(product.data_ptr(), NUMBERS[product.dtype], result.data_ptr(), NUMBERS[dtype], tokens, out_features),
            *addresses(*vectors),
            torch.get_num_threads(),
        )
    return result
