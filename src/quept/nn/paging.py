"""Giving back the memory of what is mapped from a file and not needed for a while."""

import ctypes
import mmap
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import Tensor

PAGE_OUT = 21  # MADV_PAGEOUT of Linux 5.4; memory that was written to keeps what it holds
WORTH_IT = 2**20  # bytes


def page_out(tensors: Iterable[Tensor]) -> None:
    """Let go of the pages behind large tensors: what is mapped from a file is read again when it is next used.

    Where the system cannot do that, nothing happens; values are never lost.
    """
    madvise = _madvise()
    if madvise is None:
        return
    for tensor in tensors:
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if tensor.device.type == "cpu" and end - start >= WORTH_IT:
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), PAGE_OUT)


@cache
def _madvise() -> Any:
    """The system's call, or None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "madvise", None)
