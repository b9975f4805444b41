"""A calibration's inputs, opened and checked before any work is done."""

import copy
import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quept import __version__, ops
from quept.calibration.forward import WORTH_COMPILING
from quept.calibration.reconstruct import trained_tokens
from quept.calibration.samples import source_of
from quept.config import Recipe
from quept.data import digest
from quept.devices import choose_device
from quept.errors import InvalidInput
from quept.formats.dtypes import DTYPES
from quept.layers import learned_names, stored_tensors
from quept.models import Architecture, architecture_of
from quept.models.checkpoint import check_and_digest, open_model, read_config
from quept.recipes import load_recipe
from quept.storage.artifact import skeleton
from quept.storage.manifest import Provenance


@dataclass(frozen=True)
class Job:
    """Everything that determines the result of a calibration, and nothing else."""

    model: Any
    processor: Any
    architecture: Architecture
    recipe: Recipe
    samples: Tensor
    device: torch.device
    compute_dtype: torch.dtype
    stored_dtype: str
    seed: int
    provenance: Provenance

    @property
    def config(self) -> Any:
        """The model's configuration, which names its class even where the model was not loaded from a checkpoint."""
        return _described(self.model)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What must agree for a run to be resumed."""
        return {"recipe": self.recipe.model_dump(mode="json"), **self.provenance.model_dump(mode="json")}

    def generator(self, block: int, purpose: str) -> torch.Generator:
        """A random generator that depends on the seed, the block and the purpose alone, so that work can resume."""
        name = f"{self.seed}/{block}/{purpose}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:7], "big"))


def prepare(
    model: Any,
    processor: Any,
    data: str | Path | Tensor,
    recipe: str | Path | Recipe | None,
    samples: int | None,
    sequence_length: int | None,
    seed: int,
    device: str,
    compiled: bool | None,
    strict: bool,
    note: Callable[[str], None],
) -> Job:
    """Open the model, the recipe and the data, and check that they fit; see `calibrate` for the arguments.

    `processor` is the tokenizer, or what prepares images.
    """
    where = choose_device(device)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InvalidInput(f"The seed is {seed!r}, but must be a whole number from 0 to 2**63 - 1.")
    source = str(model) if isinstance(model, str | Path) else type(model).__name__
    if isinstance(recipe, str | Path):
        recipe = load_recipe(recipe)
    if isinstance(model, str | Path):
        config = read_config(model)  # an unknown architecture is told first
        processor = processor or source_of(config).open_processor(model, config)
        model = open_model(model)
    elif not isinstance(model, PreTrainedModel):
        raise InvalidInput(
            f"The model is a {type(model).__name__}; give the path or Hub name of a Hugging Face model, or a "
            "transformers model."
        )
    architecture, reader = architecture_of(model.config.model_type), source_of(model.config)
    recipe = load_recipe(reader.recipe) if recipe is None else recipe
    recipe = reader.fitted(recipe, model.config, data, samples, sequence_length, note)
    _check_matches_config(model, recipe)
    drawn = reader.draw(data, processor, model.config, recipe, seed, strict, note)
    stored_dtype = _stored_dtype(model)
    compute_dtype = _compute_dtype(DTYPES[stored_dtype], where)
    if compiled is None:
        values = trained_tokens(recipe, reader.tokens(model.config, drawn)) * model.config.hidden_size
        compiled = where.type == "cpu" and values * len(architecture.block_list(model)) >= WORTH_COMPILING
    provenance = Provenance(
        source=source,
        model_sha256=check_and_digest(model),
        data=str(data) if isinstance(data, str | Path) else reader.tensor_name,
        data_sha256=digest(drawn),
        seed=seed,
        device=where.type,
        compute_dtype=str(compute_dtype).removeprefix("torch."),
        compiled=compiled,
        versions=_versions(rotated=recipe.rotation.enabled and where.type == "cpu"),
    )
    return Job(model, processor, architecture, recipe, drawn, where, compute_dtype, stored_dtype, seed, provenance)


def _check_matches_config(model: Any, recipe: Recipe) -> None:
    """The artifact's model is built from the configuration: it must have a place for exactly these weights.

    Building it here, without weights, also tells a rank that a layer is too small for before any work is done.
    """
    here = stored_tensors(model).keys()
    empty = skeleton(_described(model), recipe.updated(store={}, outer_bits=None), torch.float32)
    if differing := sorted(here ^ (stored_tensors(empty).keys() - learned_names(empty))):
        raise InvalidInput(
            f"The model is not the one that its configuration describes: they differ in "
            f"{differing[0]}. If that is the output head, set config.tie_word_embeddings to what the model does."
        )


def _described(model: Any) -> Any:
    """A copy of the configuration; families with more than one class for a task are told apart by its name."""
    config = copy.deepcopy(model.config)
    config.architectures = config.architectures or [type(model).__name__]
    return config


def _stored_dtype(model: Any) -> str:
    name = str(model.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InvalidInput(f"The model's weights are {name}; quept takes {', '.join(DTYPES)}. Convert it first.")
    return name


def _compute_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """bfloat16 models compute as they are where that is fast; all others in float32, which holds their weights."""
    return torch.bfloat16 if stored == torch.bfloat16 and device.type == "cuda" else torch.float32


def _versions(rotated: bool) -> dict[str, str]:
    """What the numbers come from; `rotated` where rotations run on a CPU, which kernels round otherwise."""
    import safetensors
    import transformers

    return {
        **({"kernels": ops.REVISION} if rotated and ops.available() else {}),
        "python": platform.python_version(),
        "quept": __version__,
        "safetensors": safetensors.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
