"""The facts beside recipe, weights and data that determine a calibration: a run goes on only where they are equal.

The number of CPU threads is none of them: tasks that run side by side are used in their own order.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from quept.calibration.ledger import NOT_DECISIVE
from quept.errors import QueptError
from quept.files import refusal
from quept.models import Architecture, Task

CONFIG = "config.json"


def settings_files(model: Any, config: Any, processor: Any, task: Task) -> dict[str, bytes]:
    """Return the artifact's files that hold no tensors: configuration, and tokenizer or image processor, by name."""
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            config.save_pretrained(folder)
            if getattr(model, "generation_config", None) is not None:
                # Not save_pretrained: it refuses settings that many published checkpoints have.
                model.generation_config.to_json_file(folder / "generation_config.json")
            if processor is not None:
                task.save_processor(processor, folder)
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    except OSError as error:
        raise QueptError(refusal(Path(tempfile.gettempdir()), error)) from None


def facts(model: Any, architecture: Architecture, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the facts as JSON values: the configuration itself, and SHA-256 of all else that is more than a word."""
    others = {name: content for name, content in files.items() if name not in (CONFIG, *NOT_DECISIVE)}
    return {
        "config": json.loads(files[CONFIG]),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in others.items()},
        "setup": {
            "architecture": hashlib.sha256(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(architecture)).encode()).hexdigest(),
            "attention": getattr(model.config, "_attn_implementation", None),
            "buffers": _buffers_digest(model),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
    }


def _buffers_digest(model: Any) -> str:
    """Return the SHA-256 of the buffers that are not among the weights, such as rotary frequencies."""
    total, weights = hashlib.sha256(), model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name not in weights:
            total.update(f"{name} {tuple(buffer.shape)} {buffer.dtype}".encode())
            total.update(buffer.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()
