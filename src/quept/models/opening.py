"""Opening a model of any known family."""

from pathlib import Path
from typing import Any

import torch

from quept.models.checkpoint import read_config
from quept.models.registry import architecture_of
from quept.models.task import Note


def open_model(source: str | Path, dtype: torch.dtype | None = None, note: Note = lambda text: None) -> Any:
    """Return a checkpoint's model in evaluation mode, in its own dtype unless another is given.

    `note` is told what the checkpoint holds and the model does without. Raises `InvalidInput` where there is no model,
    its family is not known, its weights cannot be loaded, or the model would not be what the checkpoint holds.
    """
    return architecture_of(read_config(source).model_type).task.open_model(source, dtype, note)
