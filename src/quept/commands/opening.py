"""Opening models for commands: an artifact, or a plain model whose linears can be rounded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quept.assembly import make_elastic
from quept.config import Recipe
from quept.devices import choose_device
from quept.errors import InvalidInput
from quept.formats.dtypes import DTYPES
from quept.layers.tensors import copy_sharing
from quept.models import Task, architecture_of, open_model
from quept.models.checkpoint import cast_parameters
from quept.models.task import Note
from quept.recipes import load_recipe
from quept.storage import is_artifact, load
from quept.storage.manifest import Manifest


@dataclass(frozen=True)
class Opened:
    """A model with elastic layers, its task and its processor; `stored` is its checkpoint's dtype."""

    model: Any
    task: Task
    processor: Any
    calibrated: bool
    stored: torch.dtype


def open_any(model: Any, recipe: str | None, device: str, dtype: str, note: Note = lambda text: None) -> Opened:
    """Open an artifact, or a plain Hugging Face model with its linears made elastic but not calibrated.

    A model by `quept.load` is taken as it is, on its device and in its dtype. `recipe` gives a plain model's
    granularity; None takes its task's default. `note` is told what is left out of a plain model.

    Raises `InvalidInput` for a model that cannot be opened, and for a recipe beside an artifact.
    """
    where = choose_device(device)
    exact = choose_dtype(dtype, where)
    if not isinstance(model, str | Path) or is_artifact(model):
        if recipe is not None:
            raise InvalidInput("--recipe is for models that are no artifacts; an artifact has its own.")
        loaded = load(model, device=where, dtype=exact, packed=False) if isinstance(model, str | Path) else model
        manifest = manifest_of(loaded)
        return Opened(loaded, task_of(loaded), open_processor(loaded), True, DTYPES[manifest.dtype])
    plain = open_model(model, note=note)
    task = architecture_of(plain.config.model_type).task
    stored = plain.dtype
    _make_roundable(cast_parameters(plain, exact or stored).to(where), load_recipe(recipe or task.default_recipe))
    return Opened(plain, task, task.open_processor(model, plain.config), False, stored)


def open_original(source: str | Path, beside: Any, note: Note = lambda text: None) -> Any:
    """Open the model to compare predictions with, on the device and in the dtype of the one beside it."""
    return cast_parameters(open_model(source, note=note), beside.dtype).to(beside.device)


def roundable_twin(original: Any, beside: Any) -> Any:
    """Return a copy of the original that shares its tensors, to round as finely as the calibrated one beside it."""
    twin = copy_sharing(original)
    _make_roundable(twin, manifest_of(beside).recipe)
    return twin


def choose_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype that `--dtype` means on a device; None keeps the checkpoint's."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    if name not in DTYPES:
        raise InvalidInput(f"The dtype {name!r} is not known; choose auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def task_of(model: Any) -> Task:
    """Return the task of a model of a registered family."""
    return architecture_of(model.config.model_type).task


def open_processor(model: Any) -> Any:
    """Open the tokenizer or image processor of an artifact's model, which `quept.load` loaded."""
    manifest_of(model)
    return task_of(model).open_processor(model.quept_directory, model.config)


def directory_of(given: Any) -> Path:
    """Return an artifact's directory from a path; raises `InvalidInput` for anything else, such as a loaded model."""
    if not isinstance(given, str | Path):
        raise InvalidInput(f"The artifact is a {type(given).__name__}; give the path of its directory.")
    return Path(given)


def manifest_of(model: Any) -> Manifest:
    """Return the manifest of a loaded model; raises `InvalidInput` for one that `quept.load` did not load."""
    manifest: Manifest | None = getattr(model, "quept_manifest", None)
    if manifest is None:
        raise InvalidInput(f"This {type(model).__name__} was not loaded by quept.load; load an artifact.")
    return manifest


def _make_roundable(model: Any, recipe: Recipe) -> None:
    """Make a model's linears elastic, and nothing more: adapters, ranges or transforms would change it."""
    if recipe.activations.range == "tensor":
        recipe = recipe.updated(activations={}, outer_bits=None)
    off = {name: {"enabled": False} for name in ("rotation", "smoothing", "reparameterization")}
    make_elastic(model, recipe.updated(adapter={"kind": "none"}, learned_rounding=(), store={}, **off))
