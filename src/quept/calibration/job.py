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
from quept.architectures import Architecture, architecture_of
from quept.architectures.checkpoint import check_and_digest, open_model, open_tokenizer, read_config
from quept.calibration.passes import WORTH_COMPILING
from quept.calibration.reconstruct import trained_tokens
from quept.data import digest, token_windows
from quept.devices import choose_device
from quept.errors import InvalidInput
from quept.nn import learned_names, stored_tensors
from quept.recipes import load_recipe
from quept.spec import Recipe
from quept.storage.artifact import DTYPES, skeleton
from quept.storage.manifest import Provenance


@dataclass(frozen=True)
class Job:
    """Everything that determines the result of a calibration, and nothing else."""

    model: Any
    tokenizer: Any
    architecture: Architecture
    recipe: Recipe
    windows: Tensor
    device: torch.device
    compute_dtype: torch.dtype
    stored_dtype: str
    seed: int
    provenance: Provenance

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
    tokenizer: Any,
    data: str | Path | Tensor,
    recipe: str | Path | Recipe,
    samples: int | None,
    sequence_length: int | None,
    seed: int,
    device: str,
    compiled: bool | None,
    note: Callable[[str], None],
) -> Job:
    """Open the model, the recipe and the data, and check that they fit; see `calibrate` for the arguments."""
    where = choose_device(device)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InvalidInput(f"The seed is {seed!r}, but must be a whole number from 0 to 2**63 - 1.")
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    source = str(model) if isinstance(model, str | Path) else type(model).__name__
    if isinstance(model, str | Path):
        read_config(model)  # an unknown architecture is told first
        tokenizer = tokenizer or open_tokenizer(model)
        model = open_model(model)
    elif not isinstance(model, PreTrainedModel):
        raise InvalidInput(
            f"The model is a {type(model).__name__}; give the path or Hub name of a Hugging Face model, or a "
            "transformers model."
        )
    architecture = architecture_of(model.config.model_type)
    if isinstance(data, Tensor):
        samples, sequence_length = _shape(data)
    recipe = _fit_data(recipe, model.config, samples, sequence_length, note)
    _check_matches_config(model, recipe)
    windows = _windows(data, tokenizer, model.config.vocab_size, recipe, seed)
    stored_dtype = _stored_dtype(model)
    compute_dtype = _compute_dtype(DTYPES[stored_dtype], where)
    if compiled is None:
        values = trained_tokens(recipe, windows.shape[1]) * model.config.hidden_size * model.config.num_hidden_layers
        compiled = where.type == "cpu" and values >= WORTH_COMPILING
    provenance = Provenance(
        source=source,
        model_sha256=check_and_digest(model),
        data=str(data) if isinstance(data, str | Path) else "token windows",
        data_sha256=digest(windows),
        seed=seed,
        device=where.type,
        compute_dtype=str(compute_dtype).removeprefix("torch."),
        compiled=compiled,
        versions=_versions(rotated=recipe.rotation.enabled and where.type == "cpu"),
    )
    return Job(model, tokenizer, architecture, recipe, windows, where, compute_dtype, stored_dtype, seed, provenance)


def _fit_data(
    recipe: Recipe, config: Any, samples: int | None, sequence_length: int | None, note: Callable[[str], None]
) -> Recipe:
    """The recipe with the caller's amount of data; a recipe's length gives way to the model's, a caller's does not."""
    limit = getattr(config, "max_position_embeddings", None) or recipe.data.sequence_length
    for option, value in (("samples", samples), ("sequence_length", sequence_length)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InvalidInput(f"{option} is {value!r}, but must be a whole number from 1 up.")
    if sequence_length is not None and sequence_length > limit:
        raise InvalidInput(
            f"The sequence length {sequence_length} is above what the model was made for, {limit} "
            "(max_position_embeddings); choose that or less."
        )
    if sequence_length is None and recipe.data.sequence_length > limit:
        note(
            f"Sequences are {limit} tokens long instead of the recipe's {recipe.data.sequence_length}: the model was "
            "made for no more."
        )
    length = sequence_length if sequence_length is not None else min(recipe.data.sequence_length, limit)
    changes = {"samples": samples if samples is not None else recipe.data.samples, "sequence_length": length}
    return recipe.updated(data=recipe.data.updated(**changes))


def _check_matches_config(model: Any, recipe: Recipe) -> None:
    """The artifact's model is built from the configuration: it must have a place for exactly these weights.

    Building it here, without weights, also tells a rank that a layer is too small for before any work is done.
    """
    here = stored_tensors(model).keys()
    empty = skeleton(copy.deepcopy(model.config), recipe, torch.float32)
    if differing := sorted(here ^ (stored_tensors(empty).keys() - learned_names(empty))):
        raise InvalidInput(
            f"The model is not the causal language model that its configuration describes: they differ in "
            f"{differing[0]}. If that is the output head, set config.tie_word_embeddings to what the model does."
        )


def _shape(windows: Tensor) -> tuple[int, int]:
    """Samples and tokens of token windows; `InvalidInput` if they are none."""
    integers = windows.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if windows.dim() != 2 or not integers or not windows.numel():
        raise InvalidInput(
            f"data is a tensor of shape {tuple(windows.shape)} and dtype {windows.dtype}; token windows are "
            "integers of shape (samples, tokens)."
        )
    return windows.shape[0], windows.shape[1]


def _windows(data: str | Path | Tensor, tokenizer: Any, vocabulary: int, recipe: Recipe, seed: int) -> Tensor:
    """Token windows `(samples, tokens)`, checked against the vocabulary."""
    if isinstance(data, Tensor):
        windows = data.to("cpu", torch.int64)
    elif not isinstance(data, str | Path):
        raise InvalidInput(f"data is a {type(data).__name__}; give a text file, a data set's name, or token windows.")
    elif not callable(tokenizer):
        raise InvalidInput("Text cannot be read without a tokenizer; pass tokenizer=, or token windows as data.")
    else:
        windows = token_windows(
            data, tokenizer, samples=recipe.data.samples, sequence_length=recipe.data.sequence_length, seed=seed
        )
    if int(windows.max()) >= vocabulary or int(windows.min()) < 0:
        raise InvalidInput(
            f"The token ids go from {int(windows.min())} to {int(windows.max())}, but the model's vocabulary "
            f"has {vocabulary}; use the model's own tokenizer."
        )
    return windows


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
