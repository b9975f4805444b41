"""What a calibration is fed: token windows for models of language, images for models of vision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from quept.config import Recipe
from quept.data import load_images, token_windows
from quept.errors import InvalidInput
from quept.models import Task, architecture_of
from quept.models.checkpoint import open_tokenizer
from quept.models.images import ImageProcessor, describe, open_image_processor

Note = Callable[[str], None]


class Source(Protocol):
    """How samples of one kind are had."""

    recipe: str  # for those who name none
    tensor_name: str  # of samples that the caller made

    def open_processor(self, model: str | Path, config: Any) -> Any:
        """What turns data into the model's inputs, as the checkpoint has it."""

    def save_processor(self, processor: Any, directory: Path) -> None:
        """Write that beside a model."""

    def fitted(
        self, recipe: Recipe, config: Any, data: Any, samples: int | None, sequence_length: int | None, note: Note
    ) -> Recipe:
        """The recipe with the amount of data that the caller wants and the model can take."""

    def draw(
        self,
        data: str | Path | Tensor,
        processor: Any,
        config: Any,
        recipe: Recipe,
        seed: int,
        strict: bool,
        note: Note,
    ) -> Tensor:
        """The samples, one along the first dimension each, as the model takes them; on the CPU.

        With `strict`, what cannot be read is an error; else it is left out, and `note` is told.
        """

    def tokens(self, config: Any, samples: Tensor) -> int:
        """About how many tokens a sample is to the first block."""


class Text:
    """Token windows, `(samples, tokens)`."""

    recipe = "best"
    tensor_name = "token windows"

    def open_processor(self, model: str | Path, config: Any) -> Any:
        """The tokenizer."""
        return open_tokenizer(model)

    def save_processor(self, processor: Any, directory: Path) -> None:
        """The tokenizer's files."""
        processor.save_pretrained(directory)

    def fitted(
        self, recipe: Recipe, config: Any, data: Any, samples: int | None, sequence_length: int | None, note: Note
    ) -> Recipe:
        """A recipe's length gives way to the model's, a caller's does not."""
        if isinstance(data, Tensor):
            samples, sequence_length = _shape(data)
        limit = getattr(config, "max_position_embeddings", None) or recipe.data.sequence_length
        for option, value in (("samples", samples), ("sequence_length", sequence_length)):
            _check_count(option, value)
        if sequence_length is not None and sequence_length > limit:
            raise InvalidInput(
                f"The sequence length {sequence_length} is above what the model was made for, {limit} "
                "(max_position_embeddings); choose that or less."
            )
        if sequence_length is None and recipe.data.sequence_length > limit:
            note(
                f"Sequences are {limit} tokens long instead of the recipe's {recipe.data.sequence_length}: the model "
                "was made for no more."
            )
        length = sequence_length if sequence_length is not None else min(recipe.data.sequence_length, limit)
        changes = {"samples": samples if samples is not None else recipe.data.samples, "sequence_length": length}
        return recipe.updated(data=recipe.data.updated(**changes))

    def draw(
        self,
        data: str | Path | Tensor,
        processor: Any,
        config: Any,
        recipe: Recipe,
        seed: int,
        strict: bool,
        note: Note,
    ) -> Tensor:
        """Windows, checked against the vocabulary; text that cannot be read is an error always."""
        if isinstance(data, Tensor):
            windows = data.to("cpu", torch.int64)
        elif not isinstance(data, str | Path):
            raise InvalidInput(
                f"data is a {type(data).__name__}; give a text file, a data set's name, or token windows."
            )
        elif not callable(processor):
            raise InvalidInput("Text cannot be read without a tokenizer; pass tokenizer=, or token windows as data.")
        else:
            windows = token_windows(
                data, processor, samples=recipe.data.samples, sequence_length=recipe.data.sequence_length, seed=seed
            )
        if int(windows.max()) >= config.vocab_size or int(windows.min()) < 0:
            raise InvalidInput(
                f"The token ids go from {int(windows.min())} to {int(windows.max())}, but the model's vocabulary "
                f"has {config.vocab_size}; use the model's own tokenizer."
            )
        return windows

    def tokens(self, config: Any, samples: Tensor) -> int:
        """Those of a window."""
        return samples.shape[1]


class Images:
    """Images as the model's processor leaves them, `(samples, channels, height, width)`."""

    recipe = "vision-best"
    tensor_name = "images"

    def open_processor(self, model: str | Path, config: Any) -> Any:
        """The image processor."""
        return open_image_processor(model, config)

    def save_processor(self, processor: Any, directory: Path) -> None:
        """Its settings."""
        (processor.process if isinstance(processor, ImageProcessor) else processor).save_pretrained(directory)

    def fitted(
        self, recipe: Recipe, config: Any, data: Any, samples: int | None, sequence_length: int | None, note: Note
    ) -> Recipe:
        """Images have no length to choose."""
        if sequence_length is not None:
            raise InvalidInput(f"The sequence length {sequence_length} is of texts; images have none, so leave it out.")
        if isinstance(data, Tensor):
            if data.dim() != 4 or not data.is_floating_point() or not data.numel():
                raise InvalidInput(
                    f"data is a tensor of shape {tuple(data.shape)} and dtype {data.dtype}; images are floats of shape "
                    "(samples, channels, height, width)."
                )
            samples = len(data)
        _check_count("samples", samples)
        return recipe if samples is None else recipe.updated(data=recipe.data.updated(samples=samples))

    def draw(
        self,
        data: str | Path | Tensor,
        processor: Any,
        config: Any,
        recipe: Recipe,
        seed: int,
        strict: bool,
        note: Note,
    ) -> Tensor:
        """Images of all classes alike, checked against what the model takes."""
        if isinstance(data, Tensor):
            return _checked(data.to("cpu", torch.float32), config)
        if not isinstance(data, str | Path):
            raise InvalidInput(
                f"data is a {type(data).__name__}; give a folder, file or data set of images, or a tensor of them."
            )
        if processor is None:
            raise InvalidInput("Images cannot be read without an image processor; pass image_processor=, or a tensor.")
        preparation = processor if isinstance(processor, ImageProcessor) else describe(processor, config)
        source = load_images(data, preparation, split="train", strict=strict)
        sample = source.take(recipe.data.samples, seed=seed)
        if source.skipped:
            first = next(iter(source.skipped))
            note(f"{len(source.skipped)} images could not be read and were left out, {first} for one.")
        return sample.pixels

    def tokens(self, config: Any, samples: Tensor) -> int:
        """The patches of an image."""
        patch = getattr(config, "patch_size", 16)
        height, width = map(int, patch if isinstance(patch, tuple | list) else (patch, patch))
        return max(1, samples.shape[-2] // height) * max(1, samples.shape[-1] // width)


def _checked(images: Tensor, config: Any) -> Tensor:
    """Images, if the model takes such; `InvalidInput` else."""
    channels, size = getattr(config, "num_channels", None), getattr(config, "image_size", None)
    wanted = None if size is None else (size, size) if isinstance(size, int) else tuple(size)
    if channels not in (None, images.shape[1]) or wanted not in (None, tuple(images.shape[2:])):
        raise InvalidInput(
            f"The images are {' x '.join(map(str, images.shape[1:]))}, but the model takes {channels} channels of "
            f"{' x '.join(map(str, wanted or ('any', 'any')))} pixels; prepare them with its own image processor."
        )
    if not bool(torch.isfinite(images).all()):
        raise InvalidInput("The images hold NaN or infinite values; prepare them with the model's own image processor.")
    return images


_SOURCES: dict[Task, Source] = {"text-generation": Text(), "image-classification": Images()}


def source_of(config: Any) -> Source:
    """How samples for models of a transformers configuration are had."""
    return _SOURCES[architecture_of(config.model_type).task]


def _check_count(option: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InvalidInput(f"{option} is {value!r}, but must be a whole number from 1 up.")


def _shape(windows: Tensor) -> tuple[int, int]:
    """Samples and tokens of token windows; `InvalidInput` if they are none."""
    integers = windows.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if windows.dim() != 2 or not integers or not windows.numel():
        raise InvalidInput(
            f"data is a tensor of shape {tuple(windows.shape)} and dtype {windows.dtype}; token windows are "
            "integers of shape (samples, tokens)."
        )
    return windows.shape[0], windows.shape[1]
