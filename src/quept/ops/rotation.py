"""Rotations by Hadamard matrices, alone and in front of rounding per token."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from quept.ops import extension
from quept.ops.tokens import addresses, quantize_rows, read, results_for, rows_of

LARGEST_FACTOR = 512  # of the matrices that kernels multiply by


class RotationSteps:
    """A rotation as the kernels read it: for each part, the matrices whose Kronecker product it is, first to last.

    Each is square, int8, of ones and minus ones; those at the end whose orders are powers of two are Sylvester's.
    Their product over the root of the part's order is what is multiplied by. `ValueError` for matrices that `fits`
    does not allow.
    """

    def __init__(self, parts: Sequence[Sequence[Tensor]]) -> None:
        self.size = sum(prod(len(matrix) for matrix in part) for part in parts)
        # Held until what is behind their addresses has been read.
        held = [[matrix.to(torch.int8).contiguous() for matrix in part] for part in parts]
        if any(matrix.shape != (len(matrix), len(matrix)) for part in held for matrix in part):
            raise ValueError("matrices of a rotation are square")
        self.native: Any = extension.native().Plan([_described(part) for part in held])

    @staticmethod
    def fits(parts: Sequence[Sequence[int]]) -> bool:
        """Whether kernels can multiply by matrices of these orders: the same, part by part."""
        return all(
            order % 4 == 0 and order <= LARGEST_FACTOR
            for part in parts
            for order in part[: len(part) - _trailing_powers(part)]
        )


def rotate_rows(values: Tensor, plan: RotationSteps) -> Tensor:
    """`R v` for every vector of `values`, `(..., size)`, that kernels can read; in their dtype, rounded once."""
    rows = _checked(values, plan)
    result = torch.empty(rows.shape, dtype=rows.dtype)
    if rows.numel():
        extension.native().rotate(plan.native, *read(rows), result.data_ptr(), torch.get_num_threads())
    return result.view(values.shape)


def rotate_and_quantize(
    values: Tensor, plan: RotationSteps, clip_ratio: float, highest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`quantize_rows(rotate_rows(values, plan), share, highest)`, the same bits, without writing what is between."""
    rows = _checked(values, plan)
    if not rows.numel():
        return quantize_rows(rows, clip_ratio, highest)
    codes, scale, sums = results_for(rows)
    extension.native().rotate_and_quantize(
        plan.native, *read(rows), clip_ratio, highest, *addresses(codes, scale, sums), torch.get_num_threads()
    )
    return codes, scale, sums


def _checked(values: Tensor, plan: RotationSteps) -> Tensor:
    if values.shape[-1] != plan.size:
        raise ValueError(f"the rotation is of {plan.size} channels, the values have {values.shape[-1]}")
    return rows_of(values)


def _trailing_powers(orders: Sequence[int]) -> int:
    count = 0
    while count < len(orders) and orders[-1 - count] & (orders[-1 - count] - 1) == 0:
        count += 1
    return count


def _described(part: Sequence[Tensor]) -> tuple[int, int, list[tuple[int, int, int]]]:
    orders = [len(matrix) for matrix in part]
    first = len(orders) - _trailing_powers(orders)
    factors = [(orders[i], prod(orders[i + 1 :]), part[i].data_ptr()) for i in range(first)]
    return prod(orders), prod(orders[first:]), factors
