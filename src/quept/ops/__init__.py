"""Kernels for CPUs, where quept was built with them; what they compute is specified, and otherwise done, in `numerics`.

A kernel is called directly: checking a tensor and passing its address takes a few microseconds, one of
PyTorch's custom operators some twenty. Where a compiler looks on, `numerics` hands it such operators, which call the
same.

`QUEPT_NATIVE` in the environment chooses: `0` runs PyTorch's operations instead, and the name of a path (`portable`,
`avx2`, `avx512`) that path; otherwise the widest that the processor has is taken. `python -m quept.ops` says what runs.
"""

from quept.ops.extension import ENVIRONMENT, REVISION, absence, available, describe, paths, using
from quept.ops.packed import read_bandwidth
from quept.ops.rotation import RotationSteps, rotate_and_quantize, rotate_rows
from quept.ops.tokens import finish_rows, quantize_rows, takes

__all__ = [
    "ENVIRONMENT",
    "REVISION",
    "RotationSteps",
    "absence",
    "available",
    "describe",
    "finish_rows",
    "paths",
    "quantize_rows",
    "read_bandwidth",
    "rotate_and_quantize",
    "rotate_rows",
    "takes",
    "using",
]
