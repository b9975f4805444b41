"""Linear layers in integers: products of int8 summed in int32, then scales, shift and bias in float32.

`formats.integers` has the operands. A weight is packed for one product, `integer_weight`; that product multiplies it
from then on.
"""

import torch
from torch import Tensor

from quept.formats.integers import ZERO, IntegerWeight, Tokens
from quept.ops.registry import operator

BLOCK = 2**22  # sums at a time: larger ones are new memory from the system each time, which takes longer to map


@operator
def integer_weight(codes: Tensor, scale: Tensor, zero_point: Tensor, device: torch.device) -> IntegerWeight:
    """Pack a weight for the fastest exact product of `device`.

    `codes` are uint8 `(out, in)`, `scale` `(out,)`, and `zero_point` `(out,)` integral from 0 to 255. `ValueError` if
    sums could leave int32.
    """
    return IntegerWeight.of(codes, scale, zero_point, device)


@operator
def integer_product(codes: Tensor, weight: IntegerWeight, dtype: torch.dtype) -> Tensor:
    """Return the sums `sum_k (codes[t, k] - 128) * packed[o, k]` times the weight's scale, `(tokens, out)` in `dtype`.

    `codes` are uint8 `(tokens, in)`. Sums are exact; the product with the scale is rounded to float32, then to `dtype`.
    The result is a tensor of its own. `ValueError` for a weight that was packed for a backend which is off.
    """
    if weight.layout != "reference":
        raise ValueError(
            f"the weight was packed for {weight.layout!r}, which is off or does not run here; pack it again"
        )
    sums = (codes.to(torch.float64) - ZERO) @ weight.packed.to(torch.float64).T  # exact up to 2**53
    return (sums.to(torch.float32) * weight.scale).to(dtype)


@operator
def finish_product(
    product: Tensor, scale: Tensor, sums: Tensor | None, shift: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return `(product + sums * shift) * scale + bias`, `(tokens, out)` in `dtype`; `product` may be overwritten.

    `product` is `(tokens, out)`, `scale` and `sums` are `(tokens, 1)`, `shift` is `(1, out)` and `bias` `(out,)`.
    Kernels compute in float32 and round once; the reference rounds to the product's dtype after each step. `ValueError`
    where shapes do not fit.
    """
    if shift is not None and sums is None:
        raise ValueError("a product is shifted by the sums of its tokens; give sums with shift")
    tokens, out_features = product.shape
    wanted = {"scale": (tokens, 1), "sums": (tokens, 1), "shift": (1, out_features), "bias": (out_features,)}
    for (name, shape), given in zip(wanted.items(), (scale, sums, shift, bias), strict=True):
        if given is not None and given.shape != shape:
            raise ValueError(f"{name} is {tuple(given.shape)}; beside a product {(tokens, out_features)} it is {shape}")
    if shift is not None and sums is not None:
        product.addcmul_(sums, shift)
    product.mul_(scale.to(product.dtype))
    if bias is not None:
        product.add_(bias.to(product.dtype))
    return product.to(dtype)


@operator
def integer_linear(
    tokens: Tokens, weight: IntegerWeight, bias: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the product of a quantized activation and a weight, `(..., out)` in `dtype`; `bias` is `(out,)`.

    The sum is exact in int32. Scales, shift and bias are applied in float32, and rounded to `dtype` at the end, or in a
    narrower `dtype` after every step where there is no shift. `ValueError` if the channels differ.
    """
    if tokens.codes.shape[1] != weight.shape[1]:
        raise ValueError(f"the activation has {tokens.codes.shape[1]} channels, the weight {weight.shape[1]}")
    size = max(1, BLOCK // max(1, weight.shape[0]))
    sums = tokens.scale if weight.shift is None else tokens.sums  # without a shift they are not read
    # Where no shift is added, the product may be rounded at once: one pass less over wide results.
    first = dtype if weight.shift is None else torch.float32

    def multiply(codes: Tensor, scale: Tensor, sums: Tensor) -> Tensor:
        return finish_product(integer_product(codes, weight, first), scale, sums, weight.shift, bias, dtype)

    operands = tokens.codes, tokens.scale, sums
    if len(tokens.codes) <= size:
        result = multiply(*operands)
    else:
        parts = zip(*(torch.split(operand, size) for operand in operands), strict=True)
        result = torch.cat([multiply(*part) for part in parts])
    return result.reshape(*tokens.leading, weight.shape[0])
