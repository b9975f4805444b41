"""A check of integer products on the device at hand: that they exist, and that their sums are exact.

Processors without VNNI or AMX saturate at sixteen bits on the way.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quept.formats.integers import ZERO, IntegerWeight


def inexactness(
    pack: Callable[[IntegerWeight], IntegerWeight],
    product: Callable[[Tensor, IntegerWeight, torch.dtype], Tensor],
    device: torch.device,
) -> str:
    """Return why a product is not to be used on a device; empty if sums of the largest products come out right.

    `pack` brings a weight of plain int8 into the product's layout; `product` is as `ops.integer_product`.
    """
    signs = torch.ones(32, 256, dtype=torch.int16, device=device)
    signs[::2, ::3] = signs[1::4] = -1
    codes = (signs * 255 + 255).div(2).to(torch.uint8)  # 0 and 255
    ones = torch.ones(32, device=device)
    try:
        weight = pack(IntegerWeight.of(codes, ones, ones * ZERO, device))
        result = product(codes, weight, torch.float32)
        values = codes.to(torch.float64) - ZERO
        exact = torch.equal(result.to(torch.float64), values @ values.T)
    except (AttributeError, RuntimeError, NotImplementedError):
        return "this PyTorch does not have it here"
    return "" if exact else "its sums are not exact here"
