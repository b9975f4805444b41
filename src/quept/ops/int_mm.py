"""The backend "int_mm": `torch._int_mm`, plain int8 in and int32 out, on CPUs and CUDA devices."""

from dataclasses import replace
from functools import cache
from types import NotImplementedType

import torch
from torch import Tensor
from torch.nn import functional as F

from quept.formats.integers import ZERO, IntegerWeight
from quept.ops import reference
from quept.ops.exactness import inexactness
from quept.ops.registry import Backend, register_kernel


class IntMm(Backend):
    """PyTorch's product, where it is exact."""

    def absence(self, device: str) -> str:
        """Return why the product is not used on this type of device."""
        return _inexactness(device)


BACKEND = IntMm("int_mm")


def register() -> None:
    """Register the product, and how weights are packed for it."""
    register_kernel(reference.integer_weight, BACKEND, integer_weight, traceable=True)
    register_kernel(reference.integer_product, BACKEND, integer_product, traceable=True)


def integer_weight(
    codes: Tensor, scale: Tensor, zero_point: Tensor, device: torch.device
) -> IntegerWeight | NotImplementedType:
    """`ops.integer_weight` on devices where the product is exact."""
    if BACKEND.absence(device.type):
        return NotImplemented
    return _pack(IntegerWeight.of(codes, scale, zero_point, device))


def integer_product(codes: Tensor, weight: IntegerWeight, dtype: torch.dtype) -> Tensor | NotImplementedType:
    """`ops.integer_product` of weights that were packed for it."""
    if weight.layout != BACKEND.name:
        return NotImplemented
    # CUDA wants more than 16 rows and multiples of eight; on a CPU the product of one input channel is wrong.
    rows, least = len(codes), 17 if codes.device.type == "cuda" else 0
    codes = F.pad(codes.view(torch.int8) ^ -ZERO, (0, -codes.shape[1] % 8, 0, max(least - rows, 0)))
    sums = torch._int_mm(codes, weight.packed.T)
    return (sums[:rows, : weight.shape[0]] * weight.scale).to(dtype)


def _pack(weight: IntegerWeight) -> IntegerWeight:
    out_features, in_features = weight.shape
    padded = F.pad(weight.packed, (0, -in_features % 8, 0, -out_features % 8))
    return replace(weight, packed=padded, layout=BACKEND.name)


@cache
def _inexactness(device: str) -> str:
    return inexactness(_pack, integer_product, torch.device(device))
