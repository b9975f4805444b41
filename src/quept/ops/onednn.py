"""The backend "onednn": integer products of oneDNN, with a weight packed for the processor.

The operation is public to `torch.compile`'s quantized models, not documented for others. Its input is unsigned here
because signed input has no fast implementation on processors without AMX.
"""

from dataclasses import replace
from functools import cache
from types import NotImplementedType

import torch
from torch import Tensor

from quept.formats.integers import ZERO, IntegerWeight
from quept.ops import reference
from quept.ops.exactness import inexactness
from quept.ops.registry import Backend, register_kernel


class OneDnn(Backend):
    """oneDNN's product, where it is exact."""

    def absence(self, device: str) -> str:
        """Return why the product is not used on this type of device."""
        return _inexactness() if device == "cpu" else "it is for CPUs only"


BACKEND = OneDnn("onednn")


def register() -> None:
    """Register the product, and how weights are packed for it."""
    register_kernel(reference.integer_weight, BACKEND, integer_weight, traceable=True)
    register_kernel(reference.integer_product, BACKEND, integer_product, traceable=True)


def integer_weight(
    codes: Tensor, scale: Tensor, zero_point: Tensor, device: torch.device
) -> IntegerWeight | NotImplementedType:
    """`ops.integer_weight` on CPUs where the product is exact."""
    if BACKEND.absence(device.type):
        return NotImplemented
    return _pack(IntegerWeight.of(codes, scale, zero_point, device))


def integer_product(codes: Tensor, weight: IntegerWeight, dtype: torch.dtype) -> Tensor | NotImplementedType:
    """`ops.integer_product` of weights that were packed for it."""
    if weight.layout != BACKEND.name:
        return NotImplemented
    inner = dtype if dtype in (torch.float32, torch.bfloat16) else torch.float32
    result: Tensor = torch.ops.onednn.qlinear_pointwise(
        *(codes, 1.0, ZERO),
        *(weight.packed, weight.scale, torch.zeros(weight.shape[0], dtype=torch.int32)),
        None,  # a bias here would be scaled with the token
        *(1.0, 0, inner),
        *("none", [], ""),
    )
    return result.to(dtype)


def _pack(weight: IntegerWeight) -> IntegerWeight:
    return replace(weight, packed=torch.ops.onednn.qlinear_prepack(weight.packed, None), layout=BACKEND.name)


@cache
def _inexactness() -> str:
    return inexactness(_pack, integer_product, torch.device("cpu"))
