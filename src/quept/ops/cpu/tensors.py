"""Checks of tensors for the extension module, and their addresses."""

import torch
from torch import Tensor, nn

from quept.formats.dtypes import NUMBERS
from quept.ops.cpu import extension

ROW_TYPES = (torch.float32, torch.bfloat16)  # of the values that kernels rotate, round and finish


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor has memory that kernels can read."""
    # Exactly these classes: others, such as a tracer's, have no memory to read from.
    if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
        return False
    return tensor.is_cpu and tensor.layout is torch.strided and not tensor.is_neg() and not tensor.is_conj()


def is_readable(tensor: Tensor) -> bool:
    """Return whether kernels can read a tensor and no gradient is asked of it."""
    return is_plain(tensor) and not (tensor.requires_grad and torch.is_grad_enabled())


def takes_rows(values: Tensor) -> bool:
    """Return whether kernels run here and can read rows of these values."""
    return values.dtype in ROW_TYPES and is_readable(values) and extension.available()


def rows_of(values: Tensor) -> Tensor:
    """Return the last dimension as rows, `(rows, size)`, each without gaps; they may lie apart."""
    rows = values.reshape(-1, values.shape[-1]) if values.dim() != 2 else values
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def described(rows: Tensor) -> tuple[int, int, int, int, int]:
    """Return rows as the kernels take them: address, type, number, size, and distance."""
    return rows.data_ptr(), NUMBERS[rows.dtype], rows.shape[0], rows.shape[1], rows.stride(0)


def addresses(*tensors: Tensor | None) -> list[int]:
    """Return the addresses of tensors, 0 for None."""
    return [0 if each is None else each.data_ptr() for each in tensors]
