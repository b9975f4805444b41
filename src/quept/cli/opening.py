"""Opening what commands measure: an artifact, or a plain model whose linears can be rounded."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quept.errors import InvalidInput

if TYPE_CHECKING:
    from quept.config import Recipe
    from quept.models import Task


@dataclass(frozen=True)
class Opened:
    """A model with elastic layers, its task and its processor; `stored` is its checkpoint's dtype."""

    model: Any
    task: "Task"
    processor: Any
    calibrated: bool
    stored: Any


def open_any(model: str, recipe: str | None, device: str, dtype: str) -> Opened:
    """Open an artifact, or a plain Hugging Face model with its linears made elastic but not calibrated."""
    from quept.devices import choose_device
    from quept.models import architecture_of, open_model
    from quept.models.checkpoint import cast_parameters
    from quept.recipes import load_recipe
    from quept.storage import DTYPES, is_artifact, load

    where = choose_device(device)
    exact = choose_dtype(dtype, where)
    if is_artifact(model):
        if recipe is not None:
            raise InvalidInput("--recipe is for models that are no artifacts; an artifact has its own.")
        loaded = load(model, device=where, dtype=exact, packed=False)
        manifest = loaded.quept_manifest
        task = architecture_of(loaded.config.model_type).task
        processor = task.open_processor(model, loaded.config)
        return Opened(loaded, task, processor, True, DTYPES[manifest.dtype])
    plain = open_model(model)
    task = architecture_of(plain.config.model_type).task
    stored = plain.dtype
    _make_roundable(cast_parameters(plain, exact or stored).to(where), load_recipe(recipe or task.default_recipe))
    return Opened(plain, task, task.open_processor(model, plain.config), False, stored)


def open_original(source: str, beside: Any) -> Any:
    """The model to compare predictions with, on the device and in the dtype of the one beside it."""
    from quept.models import open_model
    from quept.models.checkpoint import cast_parameters

    return cast_parameters(open_model(source), beside.dtype).to(beside.device)


def roundable_twin(original: Any, beside: Any) -> Any:
    """A copy of the original that shares its tensors, to be rounded as finely as the calibrated model beside it."""
    from quept.layers.tensors import copy_sharing

    twin = copy_sharing(original)
    _make_roundable(twin, beside.quept_manifest.recipe)
    return twin


def _make_roundable(model: Any, recipe: "Recipe") -> None:
    """Make a model's linears elastic, and nothing more: adapters, ranges or transforms would change it."""
    from quept.assembly import make_elastic

    if recipe.activations.range == "tensor":
        recipe = recipe.updated(activations={}, outer_bits=None)
    off = {name: {"enabled": False} for name in ("rotation", "smoothing", "reparameterization")}
    make_elastic(model, recipe.updated(adapter={"kind": "none"}, learned_rounding=(), store={}, **off))


def choose_dtype(name: str, device: Any) -> Any:
    """The torch dtype that `--dtype` means on a device; None keeps the checkpoint's."""
    from quept.storage import DTYPES

    if name == "auto":
        return DTYPES["float32"] if device.type == "cpu" else None
    if name not in DTYPES:
        raise InvalidInput(f"The dtype {name!r} is not known; choose auto, {', '.join(DTYPES)}.")
    return DTYPES[name]
