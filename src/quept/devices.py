"""Where computation runs."""

import torch

from quept.errors import InvalidInput


def choose_device(name: str | torch.device) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here; `InvalidInput` for anything else."""
    name = str(name)
    if name not in ("auto", "cpu", "cuda"):
        raise InvalidInput(f"The device {name!r} is not known; choose auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("The device is cuda, but torch sees no CUDA device; choose auto or cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
