"""A calibration's inputs, opened and checked before any work is done."""

import copy
import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quept import __version__, ops
from quept.calibration.fingerprint import facts, settings_files
from quept.calibration.forward import WORTH_COMPILING
from quept.calibration.held_out import held_out_count
from quept.calibration.methods import rounding_method
from quept.calibration.reconstruct import trained_tokens
from quept.config import Recipe
from quept.data import digest
from quept.devices import choose_device
from quept.errors import InvalidInput
from quept.formats.dtypes import DTYPES
from quept.layers import learned_names, stored_tensors
from quept.models import Architecture, architecture_for
from quept.models.checkpoint import check_and_digest, read_config
from quept.models.task import Choice, Task
from quept.recipes import load_recipe
from quept.storage.artifact import skeleton
from quept.storage.manifest import Provenance


@dataclass(frozen=True)
class Source:
    """The model to calibrate, or where it is, with its tokenizer or image processor and its architecture if given."""

    model: Any
    processor: Any
    architecture: Architecture | None


@dataclass(frozen=True)
class DataRequest:
    """The calibration data: its source or the samples, how much of it, and whether a bad image is an error."""

    data: str | Path | Tensor
    samples: int | None
    sequence_length: int | None
    strict: bool


@dataclass(frozen=True)
class Request:
    """The arguments of `calibrate` that determine its result."""

    source: Source
    wanted: DataRequest
    recipe: str | Path | Recipe | None
    seed: int
    device: str
    compiled: bool | None

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise InvalidInput(f"The seed is {self.seed!r}, but must be a whole number from 0 to 2**63 - 1.")


@dataclass(frozen=True)
class Job:
    """Everything that determines the result of a calibration, opened and checked, and nothing else."""

    model: Any
    processor: Any
    architecture: Architecture
    recipe: Recipe
    samples: Tensor
    held_out: Tensor
    device: torch.device
    compute_dtype: torch.dtype
    stored_dtype: str
    seed: int
    provenance: Provenance
    files: Mapping[str, bytes]  # of the artifact, without tensors

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The facts that must agree for a run to be resumed, as JSON values."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            **self.provenance.model_dump(mode="json"),
            **facts(self.model, self.architecture, self.files),
        }

    def generator(self, block: int, purpose: str) -> torch.Generator:
        """Return a random generator that depends on nothing but seed, block and purpose, so that work can resume."""
        name = f"{self.seed}/{block}/{purpose}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:7], "big"))


def prepare(request: Request, note: Callable[[str], None]) -> Job:
    """Open the model, the recipe and the data, and check that they fit together; `note` is told what gives way.

    Raises `InvalidInput` for a request that cannot be fulfilled, `CalibrationFailed` for weights that are not finite.
    """
    device, wanted = choose_device(request.device), request.wanted
    given = load_recipe(request.recipe) if isinstance(request.recipe, str | Path) else request.recipe
    model, processor, architecture = _open(request.source, note)
    architecture.check(model)
    task = architecture.task
    recipe = load_recipe(task.default_recipe) if given is None else given
    recipe = task.fit(recipe, model.config, wanted.data, wanted.samples, wanted.sequence_length, note)
    _check_rules(model, recipe, architecture, note)
    rounding_method(recipe.rounding_method)  # an unknown one is reported now
    _check_matches_config(model, recipe, architecture)
    samples, held_out = _drawn(request, task, processor, model.config, recipe, note)
    stored_dtype = _stored_dtype(model)
    compute_dtype = _compute_dtype(DTYPES[stored_dtype], device)
    compiled = request.compiled
    if compiled is None:
        tokens = trained_tokens(recipe, task.tokens_per_sample(model.config, samples))
        values = tokens * model.config.hidden_size * len(architecture.block_list(model))
        compiled = device.type == "cpu" and values >= WORTH_COMPILING
    provenance = Provenance(
        source=str(request.source.model) if isinstance(request.source.model, str | Path) else type(model).__name__,
        model_sha256=check_and_digest(model),
        data=str(wanted.data) if isinstance(wanted.data, str | Path) else task.samples_name,
        data_sha256=digest(torch.cat([samples, held_out])),
        seed=request.seed,
        device=device.type,
        compute_dtype=str(compute_dtype).removeprefix("torch."),
        compiled=compiled,
        versions=_versions(rotated=recipe.rotation.enabled and device.type == "cpu"),
    )
    return Job(
        model,
        processor,
        architecture,
        recipe,
        samples,
        held_out,
        device,
        compute_dtype,
        stored_dtype,
        request.seed,
        provenance,
        # With the name of its class, even where the model was not loaded from a checkpoint.
        settings_files(model, _described(model), processor, task),
    )


def _drawn(
    request: Request, task: Task, processor: Any, config: Any, recipe: Recipe, note: Callable[[str], None]
) -> tuple[Tensor, Tensor]:
    """Return the samples to train on, and those that are held out to judge what was learned.

    Those are drawn on top of the recipe's number, where the data has more, else they are the last of these.
    """
    wanted, count = request.wanted, recipe.data.samples
    choice = Choice(request.seed, wanted.strict, note, spare=held_out_count(count))
    drawn = task.draw(wanted.data, processor, config, recipe, choice)
    held_out = held_out_count(count, task.tokens_per_sample(config, drawn))
    if len(drawn) >= count + held_out:
        return drawn[:count], drawn[count:][:held_out]
    if count == 1:
        note("There is a single sample: what is learned on it is judged on it, too.")
        return drawn, drawn
    note(f"The data has {count} {task.samples_name}: {held_out} of them judge what is learned on the others.")
    return drawn[: count - held_out], drawn[count - held_out : count]


def _open(source: Source, note: Callable[[str], None]) -> tuple[Any, Any, Architecture]:
    """Return the model, its processor and its architecture; an unknown architecture is reported before weights load."""
    model, processor = source.model, source.processor
    if isinstance(model, str | Path):
        config = read_config(model)
        architecture = architecture_for(config, source.architecture)
        processor = processor or architecture.task.open_processor(model, config)
        return architecture.task.open_model(model, note=note), processor, architecture
    if not isinstance(model, PreTrainedModel):
        raise InvalidInput(
            f"The model is a {type(model).__name__}; give the path or Hub name of a Hugging Face model, or a "
            "transformers model."
        )
    return model, processor, architecture_for(model.config, source.architecture)


def _check_rules(model: Any, recipe: Recipe, architecture: Architecture, note: Callable[[str], None]) -> None:
    """Tell `note` of rules that match no layer; raises `InvalidInput` where rules leave no linear to quantize."""
    linears = [path for group in architecture.shared_input_groups(model) for path in group]
    outer = architecture.outer_layers(model) if recipe.outer_bits is not None else {}
    for pattern in recipe.unused_rules([*linears, *outer]):
        note(f"The rule for {pattern!r} matches no layer that the recipe quantizes, such as {linears[0]}.")
    if all(recipe.weight_spec_for(path) is None for path in linears):
        raise InvalidInput("The recipe's rules ignore every linear of the blocks; leave some for it to quantize.")


def _check_matches_config(model: Any, recipe: Recipe, architecture: Architecture) -> None:
    """Raise `InvalidInput` where the model that the configuration describes has other weights than this one.

    An artifact's model is built from the configuration. Building it here, without weights, also finds a rank that a
    layer is too small for, before any work is done.
    """
    here = stored_tensors(model).keys()
    empty = skeleton(_described(model), recipe.updated(store={}, outer_bits=None), torch.float32, architecture)
    if differing := sorted(here ^ (stored_tensors(empty).keys() - learned_names(empty))):
        raise InvalidInput(
            f"The model is not the one that its configuration describes: they differ in "
            f"{differing[0]}. If that is the output head, set config.tie_word_embeddings to what the model does."
        )


def _described(model: Any) -> Any:
    """Return a copy of the configuration; its class name tells the models of a family with several classes apart."""
    config = copy.deepcopy(model.config)
    config.architectures = config.architectures or [type(model).__name__]
    return config


def _stored_dtype(model: Any) -> str:
    name = str(model.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InvalidInput(f"The model's weights are {name}; quept takes {', '.join(DTYPES)}. Convert it first.")
    return name


def _compute_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """Return bfloat16 for bfloat16 models where that is fast; else float32, which holds all weights exactly."""
    return torch.bfloat16 if stored == torch.bfloat16 and device.type == "cuda" else torch.float32


def _versions(rotated: bool) -> dict[str, str]:
    """Return the versions that the numbers depend on; `rotated` where rotations run in a CPU's kernels."""
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
