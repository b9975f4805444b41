"""The task of a model, one object per modality, such as text generation or image classification.

Calibration, search, evaluation and the command line ask an architecture's task for all that differs between models of
language and of vision: opening models and processors, preparing samples, calling a model, and judging one. A new
modality is a subclass of `Task`, in one file, and architectures that name an object of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from quept.config import Recipe
from quept.errors import InvalidInput
from quept.evaluation.judges import DataOptions, Judge
from quept.models.checkpoint import open_weights

Note = Callable[[str], None]  # receives a sentence for the user


@dataclass(frozen=True)
class Choice:
    """The choice of samples by `seed`; one that cannot be read is an error if `strict`, else left out and noted.

    `spare` more of them are drawn behind those that a recipe asks for, as far as the data has them.
    """

    seed: int = 0
    strict: bool = False
    note: Note = lambda text: None
    spare: int = 0


class Task(ABC):
    """A modality: opens, feeds, calls and judges its models. Its objects have no state.

    Attributes:
        name: the task in the names of transformers' pipelines.
        verb: what a model does, to follow "a model that".
        model_class: transformers' Auto class, which opens and makes the models.
        default_recipe: the shipped recipe to calibrate with.
        samples_name: what samples are, in the plural.
        search_samples: number of samples to measure sensitivities on.
        metric: the name of what `Judge.quality` returns; lower is better.
        per_token: whether a model predicts something after every token, instead of once per sample.
        keeps_keys_values: whether attention keeps keys and values for tokens to come, so that they can be quantized.
        foreign_options: options that models of this task have no use for, see `check_options`.
    """

    name: ClassVar[str]
    verb: ClassVar[str]
    model_class: ClassVar[Any]
    default_recipe: ClassVar[str]
    samples_name: ClassVar[str]
    search_samples: ClassVar[int]
    metric: ClassVar[str]
    per_token: ClassVar[bool]
    keeps_keys_values: ClassVar[bool]
    foreign_options: ClassVar[tuple[str, ...]] = ()

    def open_model(self, source: str | Path, dtype: torch.dtype | None = None, note: Note = lambda text: None) -> Any:
        """Return a checkpoint's model in evaluation mode, in its own dtype unless another is given.

        `note` is told what the checkpoint holds and the model does without.
        """
        return open_weights(self.model_class, source, dtype, note)

    @abstractmethod
    def open_processor(self, source: str | Path, config: Any) -> Any:
        """Return the tokenizer or image processor of a checkpoint; raises `InvalidInput` if there is none."""

    @abstractmethod
    def save_processor(self, processor: Any, directory: Path) -> None:
        """Write a processor's files into the directory of a model."""

    @abstractmethod
    def fit(
        self, recipe: Recipe, config: Any, data: Any, samples: int | None, sequence_length: int | None, note: Note
    ) -> Recipe:
        """Return the recipe with the amount of data that the caller asks for and the model can take.

        Args:
            recipe: gives what the caller leaves open.
            config: the model's configuration.
            data: a tensor of samples decides on the amount; anything else does not.
            samples, sequence_length: the caller's wishes, or None.
            note: told where the recipe gives way to the model.

        Raises `InvalidInput` for an amount that the model cannot take.
        """

    @abstractmethod
    def draw(self, data: str | Path | Tensor, processor: Any, config: Any, recipe: Recipe, choice: Choice) -> Tensor:
        """Return samples as the model takes them, `(samples, ...)` on the CPU.

        Args:
            data: the name of a source, or the samples themselves.
            processor: prepares what is read; not needed for samples.
            config: the model's configuration, which the samples must fit.
            recipe: says how many samples; see `fit`.
            choice: which samples are drawn, and what becomes of those that cannot be read.
        """

    @abstractmethod
    def arguments(self, samples: Tensor) -> dict[str, Any]:
        """Return the keyword arguments that call a model with samples."""

    @abstractmethod
    def tokens_per_sample(self, config: Any, samples: Tensor) -> int:
        """Return about how many tokens of a sample reach the first block."""

    @abstractmethod
    def classes(self, config: Any) -> int:
        """Return the size of a prediction: the tokens of the vocabulary, or the classes."""

    @abstractmethod
    def predictions(self, samples: Tensor) -> int:
        """Return the number of predictions that a model makes on samples."""

    @abstractmethod
    def batch_size(self, samples: Tensor) -> int:
        """Return the number of samples in one forward pass while sensitivities are measured."""

    @abstractmethod
    def describe_amount(self, recipe: Recipe) -> str:
        """Return the amount of calibration data of a fitted recipe, in words."""

    @abstractmethod
    def judge(
        self, model: Any, processor: Any, data: str | Path, options: DataOptions, *, note: Note = lambda text: None
    ) -> Judge:
        """Open data to measure models on.

        Args:
            model: the model, which decides what `options` leave open.
            processor: its tokenizer or image processor.
            data: the name of a source.
            options: how much of it, and in which pieces.
            note: told of data that could not be read.

        Raises `InvalidInput` for data that cannot be read, and for options without a meaning for this task.
        """

    def check_options(self, **given: int | str | None) -> None:
        """Raise `InvalidInput` for an option that is given (not None) and is in `foreign_options`."""
        for name, value in given.items():
            if value is not None and name in self.foreign_options:
                raise InvalidInput(
                    f"--{name.replace('_', '-')} {value} is not for a model that {self.verb}: leave it out."
                )


def check_count(option: str, value: Any) -> None:
    """Raise `InvalidInput` for a number of samples or tokens that is neither None nor a whole number from 1 up."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InvalidInput(f"{option} is {value!r}, but must be a whole number from 1 up.")
