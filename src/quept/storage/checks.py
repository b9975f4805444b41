"""The values that a stored tensor may hold."""

import torch
from torch import Tensor

LARGEST = 2.0**24  # far above all trained values; larger ones overflow in products
SMALLEST = 2.0**-126  # the smallest normal number, of float32 and bfloat16 alike
SCALES = ("input_scale", "master_scale", "adapter_scale")


def fault(name: str, tensor: Tensor) -> str | None:
    """Check every value of a tensor, and return in words what is wrong with them, or None."""
    if not tensor.numel():
        return None
    if tensor.dtype == torch.int8:
        return "the code -128" if int(tensor.amin()) < -127 else None
    if not tensor.is_floating_point():
        return None
    low, high = (float(value) for value in tensor.aminmax())  # NaN where there is one
    if not (low >= -LARGEST and high <= LARGEST):
        return f"NaN, infinity or values beyond {LARGEST:.0f}"
    if name.rpartition(".")[2] in SCALES and low < SMALLEST:
        return "scales that are not normal numbers above zero"
    return None
