"""The backend "int_mm": `torch._int_mm`, plain int8 in and int32 out, on CPUs and CUDA devices."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from quept.formats.integers import ZERO, IntegerWeight
from quept.ops.exactness import ExactProduct


class IntMm(ExactProduct):
    """PyTorch's product, where it is exact."""

    def pack(self, weight: IntegerWeight) -> IntegerWeight:
        """Pad both sides to multiples of eight."""
        out_features, in_features = weight.shape
        padded = F.pad(weight.packed, (0, -in_features % 8, 0, -out_features % 8))
        return replace(weight, packed=padded, layout=self.name)

    def product(self, codes: Tensor, weight: IntegerWeight, dtype: torch.dtype) -> Tensor:
        """Multiply padded codes."""
        # CUDA wants more than 16 rows and multiples of eight; on a CPU the product of one input channel is wrong.
        rows, least = len(codes), 17 if codes.device.type == "cuda" else 0
        codes = F.pad(codes.view(torch.int8) ^ -ZERO, (0, -codes.shape[1] % 8, 0, max(least - rows, 0)))
        sums = torch._int_mm(codes, weight.packed.T)
        return (sums[:rows, : weight.shape[0]] * weight.scale).to(dtype)


BACKEND = IntMm("int_mm")
