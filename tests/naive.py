"""Reference expressions for plain autograd."""

import torch
from torch import Tensor


def clamp(value: Tensor, low: float, high: float) -> Tensor:
    """`value` within bounds, with gradient one from bound to bound, whatever PyTorch's own has at the bounds."""
    passes = ((value >= low) & (value <= high)).to(value.dtype)
    return value * passes + (torch.clamp(value, low, high) * (1 - passes)).detach()
