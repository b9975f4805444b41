"""Rotations by Hadamard matrices."""

from torch import Tensor

from quept.numerics.hadamard import Rotation
from quept.ops.registry import operator


@operator
def rotate(values: Tensor, rotation: Rotation, inverse: bool = False) -> Tensor:
    """Return `R v`, or `R^T v` with `inverse`, for every vector `v` along the last dimension; differentiable.

    `values` are `(..., rotation.size)` of any float dtype, which the result has. Kernels round once at the end; the
    reference rounds after each of its matrices. `ValueError` if the sizes differ.
    """
    return rotation.inverse(values) if inverse else rotation(values)
