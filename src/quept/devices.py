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
