"""Operators that have kernels, and the kernels.

Each operator is a function with a reference in PyTorch (`reference/`), for which backends register kernels:

- `cpu`: quept's own, built from `native/`;
- `onednn`, `int_mm`: integer products of PyTorch, used where they are found to be exact.

`registry` says how a kernel is chosen, and how another backend joins. `python -m quept.ops` tells what runs.

`QUEPT_NATIVE` in the environment is about the backend `cpu`: `0` turns it off, and the name of a path (`portable`,
`avx2`, `avx512`) takes that path; otherwise the widest that the processor has is taken.
"""

import torch

from quept.ops import compiled, cpu, int_mm, onednn
from quept.ops.cpu.extension import ENVIRONMENT, REVISION, describe, paths
from quept.ops.cpu.packed import read_bandwidth
from quept.ops.reference import (
    dequantize,
    finish_product,
    integer_linear,
    integer_product,
    integer_weight,
    packed_linear,
    quantize_tokens,
    rebuild,
    rotate,
)
from quept.ops.registry import BACKENDS, Backend, Operator, register_kernel, using
from quept.ops.report import report

__all__ = [
    "BACKENDS",
    "ENVIRONMENT",
    "REVISION",
    "Backend",
    "Operator",
    "available",
    "dequantize",
    "describe",
    "finish_product",
    "has_integer_product",
    "integer_linear",
    "integer_product",
    "integer_weight",
    "packed_linear",
    "paths",
    "quantize_tokens",
    "read_bandwidth",
    "rebuild",
    "register_kernel",
    "report",
    "rotate",
    "using",
]

cpu.register()
onednn.BACKEND.register()
int_mm.BACKEND.register()
compiled.register()


def available() -> bool:
    """Return whether quept's own kernels run."""
    return cpu.BACKEND.enabled and cpu.extension.available()


def has_integer_product(device: torch.device) -> bool:
    """Return whether a backend has an exact integer product on this device."""
    return integer_product.backend_on(device.type) is not None
