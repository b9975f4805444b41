"""The device that computation runs on, and the number of CPU threads."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from quept.errors import InvalidInput


def choose_device(name: str | torch.device) -> torch.device:
    """Return the device that `auto` (CUDA if there is one), `cpu`, `cuda` or, for example, `cuda:1` means here.

    Raises:
        InvalidInput: The name is none of these, or there is no such CUDA device.
    """
    name = str(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()) or name.endswith(":"):
        raise InvalidInput(
            f"The device {name!r} is not known; choose auto, cpu, cuda, or one CUDA device such as cuda:1."
        )
    if int(index or 0) >= torch.cuda.device_count():
        raise InvalidInput(
            f"The device is {name}, but PyTorch finds {torch.cuda.device_count()} CUDA devices; choose auto or cpu."
        )
    return torch.device(name)


DeviceMap = str | int | torch.device | Mapping[str, str | int | torch.device] | None


def device_of_map(device_map: DeviceMap) -> str:
    """Return the name of the one device that a device map, as transformers takes them, puts a model on.

    Raises `InvalidInput` for a map to several devices, and for a strategy that spreads a model over them.
    """
    places = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    names = {f"cuda:{each}" if isinstance(each, int) and not isinstance(each, bool) else str(each) for each in places}
    if len(names) != 1 or names & {"balanced", "balanced_low_0", "sequential", "disk", "meta"}:
        raise InvalidInput(
            f"The device_map {device_map!r} puts a model on several devices or spreads it, but a quept model "
            'is on one: give "auto", a device such as "cuda:0", or {"": device}.'
        )
    return names.pop()


SHORT = 1 << 19  # an operation whose result has fewer values is not worth splitting between threads


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Use `count` CPU threads per operation in the context, and in threads started in it; None changes nothing."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def threads_for(values: int) -> int | None:
    """Return the number of CPU threads for operations whose results have `values` elements; None keeps PyTorch's.

    Short operations get one: threads that wait for one another at the end of each gain little, and beside another busy
    process they lose many times that.
    """
    return 1 if values < SHORT else None


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 in hardware; otherwise float32 is faster."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
