"""Where computation runs."""

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


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products in bfloat16; without, they are slower than float32's."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
