"""Backends with an integer product of PyTorch, which is used where it exists and its sums are exact.

Processors without VNNI or AMX saturate at sixteen bits on the way.
"""

from types import NotImplementedType

import torch
from torch import Tensor

from quept.formats.integers import ZERO, IntegerWeight
from quept.ops import reference
from quept.ops.registry import Backend, register_kernel


class ExactProduct(Backend):
    """A backend of one integer product, and of the layout in which it takes weights, named like the backend."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._inexactness: dict[str, str] = {}

    def pack(self, weight: IntegerWeight) -> IntegerWeight:
        """Bring a weight of plain int8 into the product's layout."""
        raise NotImplementedError

    def product(self, codes: Tensor, weight: IntegerWeight, dtype: torch.dtype) -> Tensor:
        """Return `ops.integer_product` of a weight in the product's layout."""
        raise NotImplementedError

    def absence(self, device: str) -> str:
        """Return why the product is not used on this type of device; it is tried once."""
        if device not in self._inexactness:
            self._inexactness[device] = _inexactness(self, torch.device(device))
        return self._inexactness[device]

    def integer_weight(
        self, codes: Tensor, scale: Tensor, zero_point: Tensor, device: torch.device
    ) -> IntegerWeight | NotImplementedType:
        """`ops.integer_weight` on devices where the product is exact."""
        if self.absence(device.type):
            return NotImplemented
        return self.pack(IntegerWeight.of(codes, scale, zero_point, device))

    def integer_product(self, codes: Tensor, weight: IntegerWeight, dtype: torch.dtype) -> Tensor | NotImplementedType:
        """`ops.integer_product` of weights that were packed for it."""
        return NotImplemented if weight.layout != self.name else self.product(codes, weight, dtype)

    def register(self) -> None:
        """Register the product, and how weights are packed for it."""
        register_kernel(reference.integer_weight, self, self.integer_weight, traceable=True)
        register_kernel(reference.integer_product, self, self.integer_product, traceable=True)


def _inexactness(backend: ExactProduct, device: torch.device) -> str:
    """Return why a product is not to be used on a device; empty if sums of the largest products come out right."""
    signs = torch.ones(32, 256, dtype=torch.int16, device=device)
    signs[::2, ::3] = signs[1::4] = -1
    codes = (signs * 255 + 255).div(2).to(torch.uint8)  # 0 and 255
    ones = torch.ones(32, device=device)
    try:
        weight = backend.pack(IntegerWeight.of(codes, ones, ones * ZERO, device))
        result = backend.product(codes, weight, torch.float32)
        values = codes.to(torch.float64) - ZERO
        exact = torch.equal(result.to(torch.float64), values @ values.T)
    except (AttributeError, RuntimeError, NotImplementedError):
        return "this PyTorch does not have it here"
    return "" if exact else "its sums are not exact here"
