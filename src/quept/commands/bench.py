"""`quept.bench`: speed at each precision."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from quept.commands.bits import BitsLike, read_precisions
from quept.commands.opening import choose_dtype, directory_of
from quept.config import Precision
from quept.errors import InvalidInput
from quept.evaluation.speed import Speed, measure_speed
from quept.models import architecture_of
from quept.ops import available, describe, read_bandwidth
from quept.storage import load

Progress = Callable[[str, int, int], None]  # what is measured, steps done, steps in total


def _check_count(name: str, value: int) -> None:
    """Raise `InvalidInput` for a number below 1."""
    if value < 1:
        raise InvalidInput(f"{name} is {value}, but must be 1 or more.")


@dataclass(frozen=True)
class Workload:
    """A prompt of `prompt` tokens, `repeats` times, and `tokens` tokens decoded behind it."""

    prompt: int = 128
    tokens: int = 32
    repeats: int = 3

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            _check_count(name, value)


@dataclass(frozen=True)
class Benchmark:
    """Speeds of an artifact.

    Attributes:
        directory: the artifact.
        threads: PyTorch's.
        kernels: the kernels that ran, in words.
        read_bytes_per_second: measured speed of the memory, NaN without kernels.
        baseline: the model unquantized in bfloat16, or None.
        results: one for each precision.
    """

    directory: str
    threads: int
    kernels: str
    read_bytes_per_second: float
    baseline: Speed | None
    results: tuple[Speed, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary for `json.dump`."""
        found = asdict(self)
        return {**{name: value for name, value in found.items() if name != "results"}, "widths": list(found["results"])}


def bench(
    directory: str | Path,
    *,
    bits: BitsLike | None = None,
    workload: Workload = Workload(),
    dtype: str = "auto",
    exact: bool = False,
    threads: int | None = None,
    memory_budget: int | None = None,
    baseline: bool = True,
    progress: Progress = lambda label, done, total: None,
) -> Benchmark:
    """Time an artifact of a language model at each precision: prompts, single tokens, and switches.

    Args:
        directory: the artifact.
        bits: precisions as in `2-8`, `4` or `[2, "w4a8"]`; None is all that there are.
        workload: tokens to run.
        dtype: of what is not quantized; `auto` is the checkpoint's.
        exact: multiply activations as they come, not rounded to eight bits on the way.
        threads: of the processor, set for the whole process; None leaves PyTorch's.
        memory_budget: bytes for packed weights.
        baseline: whether to time the model unquantized, in bfloat16, as well.
        progress: told what is measured, steps done and in total.

    Raises `InvalidInput` for a model that generates no text, and for bits that were not calibrated.
    """
    directory = directory_of(directory)
    if threads is not None:
        _check_count("threads", threads)
        torch.set_num_threads(threads)
    kept = None if dtype == "auto" else choose_dtype(dtype, torch.device("cpu"))
    model = load(directory, dtype=kept, packed=True, exact=exact, memory_budget=memory_budget)
    if not (task := architecture_of(model.config.model_type).task).keeps_keys_values:
        raise InvalidInput(
            f"{directory} holds a {model.config.model_type} model, which {task.verb}; bench is for models "
            "that generate text."
        )
    precisions = read_precisions(bits) or tuple(Precision(weights=each) for each in model.quept_manifest.recipe.bits)
    steps = _Steps((workload.repeats + workload.tokens) * (len(precisions) + baseline), progress)
    steps.name("memory")
    bandwidth = read_bandwidth() if available() else math.nan
    settings: dict[str, Any] = {**asdict(workload), "on_step": steps.advance}
    full: Speed | None = None
    if baseline:
        steps.name("bfloat16")
        full = measure_speed(load(directory, dtype=torch.bfloat16, packed=False, verify=False), None, **settings)
    speeds = []
    for precision in precisions:
        steps.name(f"{precision} bits")
        speeds.append(measure_speed(model, precision, **settings))
    return Benchmark(str(directory), torch.get_num_threads(), describe(), bandwidth, full, tuple(speeds))


@dataclass
class _Steps:
    """Counts steps, and tells `progress` of each."""

    total: int
    progress: Progress
    done: int = 0
    label: str = ""

    def name(self, label: str) -> None:
        self.label = label
        self.progress(label, self.done, self.total)

    def advance(self) -> None:
        self.done += 1
        self.progress(self.label, self.done, self.total)
