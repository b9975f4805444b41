"""Opening a model of any known family."""

from pathlib import Path
from typing import Any

import torch

from quept.models.checkpoint import read_config
from quept.models.registry import architecture_of


def open_model(source: str | Path, dtype: torch.dtype | None = None) -> Any:
    """Return a checkpoint's model in evaluation mode, in its own dtype unless another is given.

    Raises `InvalidInput` where there is no model, its family is not known, or its weights cannot be loaded.
    """
    return architecture_of(read_config(source).model_type).task.open_model(source, dtype)
