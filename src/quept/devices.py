"""Where computation runs, and on how many of a processor's threads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from quept.errors import InvalidInput


def choose_device(name: str | torch.device) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:1` means here; `InvalidInput` for anything else."""
    name = str(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()) or name.endswith(":"):
        raise InvalidInput(f"The device {name!r} is not known; choose auto, cpu or cuda.")
    if int(index or 0) >= torch.cuda.device_count():
        raise InvalidInput(
            f"The device is {name}, but torch sees {torch.cuda.device_count()} CUDA devices; choose auto or cpu."
        )
    return torch.device(name)


SHORT = 1 << 19  # values of an operation's result; one with fewer is not worth splitting between threads


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Within: operations of this thread, and of threads that begin, are split between `count`; None is as before."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def threads_for(values: int) -> int | None:
    """Return how many threads suit operations on so many values: one for short ones, else (None) as many as there are.

    Threads that wait for one another at the end of every short operation gain little, and beside a busy process they
    lose many times that.
    """
    return 1 if values < SHORT else None


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products in bfloat16; without, they are slower than float32's."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
