"""Kernels that rotate by Hadamard matrices: fast Walsh-Hadamard transforms, and Paley's matrices."""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from types import NotImplementedType
from typing import Any

import torch
from torch import Tensor

from quept.numerics.hadamard import Rotation, factor_matrix, factors
from quept.ops.cpu import extension
from quept.ops.cpu.tensors import described, rows_of, takes_rows

LARGEST_FACTOR = 512  # of the matrices that kernels multiply by


def rotate(values: Tensor, rotation: Rotation, inverse: bool = False) -> Tensor | NotImplementedType:
    """`ops.rotate` of float32 and bfloat16, rounded once."""
    if not takes_rows(values) or values.shape[-1] != rotation.size:
        return NotImplemented
    steps = steps_of(rotation, inverse)
    if steps is None:
        return NotImplemented
    rows = rows_of(values)
    result = torch.empty(rows.shape, dtype=rows.dtype)
    if rows.numel():
        extension.native().rotate(steps, *described(rows), result.data_ptr(), torch.get_num_threads())
    return result.view(values.shape)


@lru_cache(maxsize=64)
def steps_of(rotation: Rotation, inverse: bool = False) -> Any:
    """Return the rotation as the extension module's `Plan`; None where a factor is too large for it."""
    parts = []
    for order in rotation.orders:
        found = factors(order)
        assert found is not None
        if any(factor > LARGEST_FACTOR or factor % 4 for factor in found[: len(found) - _trailing_powers(found)]):
            return None
        parts.append([factor_matrix(factor).T if inverse else factor_matrix(factor) for factor in found])
    # Held until what is behind their addresses has been read.
    held = [[matrix.to(torch.int8).contiguous() for matrix in part] for part in parts]
    return extension.native().Plan([_described(part) for part in held])


def _described(part: Sequence[Tensor]) -> tuple[int, int, list[tuple[int, int, int]]]:
    """Return a part's order, that of its Walsh-Hadamard transform, and the other factors: order, stride and address."""
    orders = [len(matrix) for matrix in part]
    first = len(orders) - _trailing_powers(orders)
    others = [(orders[i], prod(orders[i + 1 :]), part[i].data_ptr()) for i in range(first)]
    return prod(orders), prod(orders[first:]), others


def _trailing_powers(orders: Sequence[int]) -> int:
    """Return how many of the last orders are powers of two."""
    count = 0
    while count < len(orders) and orders[-1 - count] & (orders[-1 - count] - 1) == 0:
        count += 1
    return count
