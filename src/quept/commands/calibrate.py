"""`quept.calibrate`: calibrate a model once, with changes of a recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from torch import Tensor

from quept import calibration
from quept.calibration import Progress, Report
from quept.commands.bits import bits_text
from quept.config import Recipe
from quept.errors import InvalidInput
from quept.models import Architecture, architecture_for
from quept.models.checkpoint import read_config
from quept.recipes import load_recipe


class CalibrationOptions(TypedDict, total=False):
    """The options of `calibrate` that are no settings of a recipe."""

    architecture: Architecture | None
    tokenizer: Any
    image_processor: Any
    samples: int | None
    sequence_length: int | None
    seed: int
    device: str
    resume: bool
    compiled: bool | None
    strict: bool
    stream_memory: int
    progress: Progress | None


def calibrate(
    model: Any,
    output: str | Path,
    *,
    data: str | Path | Tensor,
    recipe: str | Path | Recipe | None = None,
    bits: str | int | Sequence[int] | None = None,
    activation_bits: str | int | Sequence[int] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    group_size: int | None = None,
    rank: int | None = None,
    **options: Unpack[CalibrationOptions],
) -> Report:
    """Calibrate a model once for every bit-width of the recipe, and write the artifact.

    Args:
        model: a Hugging Face model directory or Hub name, or a transformers model (then give its tokenizer too).
        output: directory of the artifact; must not exist, or be empty. While the run lasts, its work is in
            `<output>.partial`.
        data: for a causal language model a text file or data set name (see `quept.data`), or token windows
            `(samples, tokens)`; for an image classifier a folder, file or data set of images, or images as the
            model takes them, `(samples, channels, height, width)`.
        recipe: a shipped recipe's name, a TOML file, or a `Recipe`; None is `best`, for images `vision-best`.
        bits: bit-widths instead of the recipe's, as in `2-8`, `"2,4,8"` or `(2, 4, 8)`.
        activation_bits: bit-widths of activations, where the recipe has them; None is the same as of weights.
        epochs: passes over the data per block, instead of the recipe's.
        batch_size: windows or images per optimizer step, instead of the recipe's.
        group_size: inputs per scale at the recipe's grouped bits, instead of the recipe's.
        rank: rank that each bit group adds to the adapter, instead of the recipe's.
        **options: `architecture`: the model's family; None takes the one that is registered for its `model_type`. To
            load the artifact the architecture has to be registered. `tokenizer`, `image_processor`: where `model` is
            not a path. `samples`, `sequence_length`: windows or images, and tokens per window, instead of the recipe's.
            `seed`: of the data choice, the adapters and the sampling; same seed, same machine: same artifact, byte for
            byte. `device`: `auto`, `cpu` or `cuda`. `resume`: go on with an interrupted run of the same settings.
            `compiled`: whether training runs through `torch.compile`; None decides by the amount of work, on a CPU.
            `strict`: an image that cannot be read is an error, instead of left out. `stream_memory`: bytes of hidden
            states held in memory; beyond it they live in memory-mapped files. `progress`: told what happens.

    Raises `InvalidInput` for wrong settings or too little data, `CalibrationFailed` for non-finite weights or
    losses, `QueptError` when the disk refuses; none leaves a half-written output.
    """
    changes: dict[str, Any] = {"bits": bits_text(bits), "activation_bits": bits_text(activation_bits)}
    changes |= {"epochs": epochs, "batch_size": batch_size, "group_size": group_size, "rank": rank}
    if any(value is not None for value in changes.values()):
        recipe = _recipe(model, recipe, options.get("architecture")).adjusted(**changes)
    return calibration.calibrate(model, output, data=data, recipe=recipe, **options)


def _recipe(model: Any, recipe: str | Path | Recipe | None, architecture: Architecture | None) -> Recipe:
    """Return a recipe by name or file, or (None) the one that is recommended for the model's task."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe is None:
        config = read_config(model) if isinstance(model, str | Path) else getattr(model, "config", None)
        if config is None:
            raise InvalidInput(
                f"The model is a {type(model).__name__}; give a path, a Hub name, or a transformers model."
            )
        recipe = architecture_for(config, architecture).task.default_recipe
    return load_recipe(recipe)
