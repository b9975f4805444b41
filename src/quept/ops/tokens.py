"""Rounding per token, and what follows a product of integers."""

import torch
from torch import Tensor, nn

from quept.ops import extension

TYPES = {torch.float32: 0, torch.bfloat16: 1}  # as the kernels number them


def takes(values: Tensor) -> bool:
    """Whether kernels can read these values: a plain tensor, on a CPU, of a type they know, without gradients."""
    # Exactly these classes: others, such as a tracer's, have no memory to read from.
    if type(values) is not Tensor and type(values) is not nn.Parameter:
        return False
    if values.device.type != "cpu" or values.dtype not in TYPES or values.layout != torch.strided:
        return False
    if values.requires_grad and torch.is_grad_enabled():
        return False
    return not (values.is_neg() or values.is_conj()) and extension.available()


def rows_of(values: Tensor) -> Tensor:
    """The last dimension as rows, `(rows, width)`, each without gaps; they may lie apart."""
    rows = values.reshape(-1, values.shape[-1]) if values.dim() != 2 else values
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def quantize_rows(values: Tensor, clip_ratio: float, highest: int) -> tuple[Tensor, Tensor, Tensor]:
    """`numerics.integer.quantize_tokens` of `values`, `(..., in)`, that kernels can read.

    Returns codes, uint8 `(tokens, in)`; scales, float32 `(tokens, 1)`; and sums of codes, float32 `(tokens, 1)`.
    """
    rows = rows_of(values)
    codes, scale, sums = results_for(rows)
    if rows.numel():
        extension.native().quantize(
            *read(rows), clip_ratio, highest, *addresses(codes, scale, sums), torch.get_num_threads()
        )
    return codes, scale, sums


def finish_rows(
    product: Tensor, scale: Tensor, sums: Tensor | None, shift: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`(product + sums * shift) * scale + bias` in float32, rounded once to `dtype`, float32 or bfloat16.

    `product` is `(tokens, out)`, contiguous, and written over where it has that dtype already; `scale` and `sums` are
    `(tokens, 1)`, `shift` `(1, out)` and `bias` `(out,)`.
    """
    tokens, width = product.shape
    if not product.is_contiguous() or (shift is not None and sums is None):
        raise ValueError("a product is finished where it is contiguous, and shifted by the sums of its tokens")
    given = (scale, tokens), (sums, tokens), (shift, width), (bias, width)
    vectors = [None if vector is None else _vector(vector, size) for vector, size in given]
    result = product if product.dtype == dtype else torch.empty_like(product, dtype=dtype)
    if product.numel():
        pointers = [0 if each is None else each.data_ptr() for each in vectors]
        types = TYPES[product.dtype], TYPES[dtype]
        extension.native().finish(
            *(product.data_ptr(), types[0], result.data_ptr(), types[1], tokens, width),
            *pointers,
            torch.get_num_threads(),
        )
    return result


def _vector(values: Tensor, size: int) -> Tensor:
    if values.numel() != size:
        raise ValueError(
            f"{values.numel()} scales, sums, shifts or biases do not fit a product that has {size} of them"
        )
    if values.dtype == torch.float32 and values.is_contiguous():
        return values
    return values.to(torch.float32).contiguous()


def results_for(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for codes, scales and sums."""
    scale = torch.empty(rows.shape[0], 1, dtype=torch.float32)
    return torch.empty(rows.shape, dtype=torch.uint8), scale, torch.empty_like(scale)


def read(rows: Tensor) -> tuple[int, int, int, int, int]:
    """Rows as the kernels take them: address, type, how many, how wide, and how far apart."""
    return rows.data_ptr(), TYPES[rows.dtype], rows.shape[0], rows.shape[1], rows.stride(0)


def addresses(*tensors: Tensor) -> list[int]:
    """Where tensors are."""
    return [each.data_ptr() for each in tensors]
