"""The backend "onednn": integer products of oneDNN, with a weight packed for the processor.

The operation is public to `torch.compile`'s quantized models, not documented for others. Its input is unsigned here
because signed input has no fast implementation on processors without AMX.
"""

from dataclasses import replace

import torch
from torch import Tensor

from quept.formats.integers import ZERO, IntegerWeight
from quept.ops.exactness import ExactProduct


class OneDnn(ExactProduct):
    """oneDNN's product, where it is exact."""

    def absence(self, device: str) -> str:
        """Return why the product is not used on this type of device."""
        return super().absence(device) if device == "cpu" else "it is for CPUs only"

    def pack(self, weight: IntegerWeight) -> IntegerWeight:
        """Let oneDNN lay the weight out for the processor."""
        packed = torch.ops.onednn.qlinear_prepack(weight.packed, None)
        return replace(weight, packed=packed, layout=self.name)

    def product(self, codes: Tensor, weight: IntegerWeight, dtype: torch.dtype) -> Tensor:
        """Multiply and scale in one operation."""
        inner = dtype if dtype in (torch.float32, torch.bfloat16) else torch.float32
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(codes, 1.0, ZERO),
            *(weight.packed, weight.scale, torch.zeros(weight.shape[0], dtype=torch.int32)),
            None,  # a bias here would be scaled with the token
            *(1.0, 0, inner),
            *("none", [], ""),
        )
        return result.to(dtype)


BACKEND = OneDnn("onednn")
