"""`quept.sensitivity`: the cost in accuracy of each linear at each bit-width."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from quept.commands.bits import read_bits
from quept.commands.opening import choose_dtype, manifest_of, open_processor, task_of
from quept.data import digest
from quept.devices import choose_device
from quept.errors import InvalidInput
from quept.models.task import Choice, Note
from quept.search.measurement import measure_table
from quept.search.sensitivity import Progress
from quept.search.table import Metric, Origin, SensitivityTable, model_digest
from quept.search.target import rows_of, search_target
from quept.storage import load, read_manifest

IN_MEMORY = "samples"  # the data of tables that were measured on a tensor


def sensitivity(
    model: Any,
    data: str | Path,
    output: str | Path,
    *,
    metric: Metric = "kl",
    kv_bits: str | int | Sequence[int] | None = None,
    samples: int | None = None,
    sequence_length: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
    note: Note = lambda text: None,
) -> SensitivityTable:
    """Measure the sensitivity of each linear of an artifact at each bit-width, and write the table.

    Args:
        model: the directory of an artifact, or a model by `quept.load`.
        data: text or images, as for `calibrate`; better not the calibration data.
        output: the JSON file; an interrupted measurement goes on from `<output>.partial`.
        metric: `kl` runs the model for every linear and bit-width, `gradient` estimates from one backward pass.
        kv_bits: bit-widths of keys and values to measure too, as in `2-8`.
        samples: windows or images; None is the task's default.
        sequence_length: tokens per window; None is as calibrated.
        seed: of the choice of samples.
        device: `auto`, `cpu` or `cuda`, for a path.
        dtype: `auto`, `float32`, `bfloat16` or `float16`, for a path.
        progress: told what is measured, passes done and in total.
        note: told what the user should know.

    Raises `InvalidInput` for what cannot be opened, and where `output` is of another measurement.
    """
    _check_metric(metric)
    if metric == "gradient" and kv_bits is not None:
        raise InvalidInput("Gradients are of linears alone; use --metric kl for --kv-bits.")
    keys_values = read_bits(kv_bits) or ()
    if isinstance(model, str | Path):
        where = choose_device(device)
        model = load(model, device=where, dtype=choose_dtype(dtype, where), integers=False, packed=False)
    drawn = draw_samples(model, data, samples, sequence_length, seed=seed, note=note)
    origin = _origin(model, drawn, metric, str(data), keys_values)
    return measure_table(search_target(model, drawn), origin, Path(output), progress=progress, note=note)


def measure_sensitivity(
    model: Any, samples: Tensor, output: str | Path, *, metric: Metric = "kl", progress: Progress | None = None
) -> SensitivityTable:
    """Measure the sensitivities of a loaded model on samples in memory, and write the table; see `sensitivity`.

    Args:
        model: a model by `quept.load`.
        samples: token windows, integers `(samples, tokens)`, or images as the model takes them.
        output: the JSON file; an interrupted measurement goes on from `<output>.partial`.
        metric: `kl` or `gradient`.
        progress: told what is measured, passes done and in total.

    Raises `InvalidInput` for another model and other samples.
    """
    _check_metric(metric)
    manifest_of(model)
    if not isinstance(samples, Tensor):
        raise InvalidInput(f"The samples are a {type(samples).__name__}; give a tensor, as the model takes it.")
    origin = _origin(model, samples, metric, IN_MEMORY)
    return measure_table(search_target(model, samples), origin, Path(output), progress=progress)


def open_table(path: str | Path, directory: str | Path) -> SensitivityTable:
    """Read a table; raises `InvalidInput` for one of another artifact than that in `directory`."""
    table = SensitivityTable.read(path)
    table.check_model(model_digest(read_manifest(directory, verify=False)), str(path))
    return table


def draw_samples(
    model: Any,
    data: str | Path,
    samples: int | None,
    sequence_length: int | None,
    *,
    seed: int,
    note: Note,
) -> Tensor:
    """Return samples for a model by `quept.load`, drawn and prepared as for its calibration.

    `samples` and `sequence_length` are as for `sensitivity`.
    """
    manifest, task, config = manifest_of(model), task_of(model), model.config
    count = task.search_samples if samples is None else samples
    recipe = task.fit(manifest.recipe, config, data, count, sequence_length, note)
    return task.draw(data, open_processor(model), config, recipe, Choice(seed, note=note))


def _check_metric(metric: str) -> None:
    if metric not in ("kl", "gradient"):
        raise InvalidInput(f"The metric {metric!r} is not known; choose kl or gradient.")


def _origin(model: Any, samples: Tensor, metric: Metric, data: str, keys_values: tuple[int, ...] = ()) -> Origin:
    return Origin(
        metric=metric,
        model=model_digest(manifest_of(model)),
        data=data,
        data_sha256=digest(samples),
        rows=rows_of(model, samples),
        keys_values=keys_values,
    )
