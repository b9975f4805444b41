"""Memory from the system: large pages for weights that every token reads, and pages given back when not needed.

A weight is read from front to back for every token. With pages of 4 KiB the processor looks up an address for each of
them; with those of 2 MiB hardly ever, and single tokens take up to a third less time (`benchmarks/kernels.py`).
"""

import ctypes
import mmap
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

HUGE_PAGE = 2**21  # bytes
HUGE_PAGES = 14  # MADV_HUGEPAGE of Linux
PAGE_OUT = 21  # MADV_PAGEOUT of Linux 5.4; memory that was written to keeps what it holds
WORTH_IT = 2**20  # bytes


def empty_bytes(rows: int, columns: int) -> Tensor:
    """Return uninitialized bytes `(rows, columns)` on a CPU; in huge pages where the system has them and they fit."""
    count = rows * columns
    whole = count // HUGE_PAGE * HUGE_PAGE
    if not whole or _madvise() is None:
        return torch.empty(rows, columns, dtype=torch.uint8)
    # The excess is never written to, so it takes no memory.
    room = torch.empty(count + HUGE_PAGE, dtype=torch.uint8)
    start = -room.data_ptr() % HUGE_PAGE
    _madvise()(ctypes.c_void_p(room.data_ptr() + start), ctypes.c_size_t(whole), HUGE_PAGES)
    return room[start : start + count].view(rows, columns)


def page_out(tensors: Iterable[Tensor]) -> None:
    """Give back the pages behind large tensors; those mapped from a file are read again when they are next used.

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
    """Return the system's call, or None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "madvise", None)
