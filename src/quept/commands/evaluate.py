"""`quept.evaluate`: accuracy at each precision."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quept.commands.bits import BitsLike, read_precisions
from quept.commands.opening import Opened, open_any, open_original, roundable_twin
from quept.config import Precision, PrecisionPlan
from quept.errors import InvalidInput
from quept.evaluation import AccuracyEvaluation, Evaluation
from quept.evaluation.judges import DataOptions, Measured, Report
from quept.models.task import Note
from quept.precision import elastic_linears


def evaluate(
    model: Any,
    data: str | Path,
    *,
    bits: BitsLike | None = None,
    kv_bits: int | None = None,
    plans: Sequence[str | Path] = (),
    baseline: bool = False,
    original: str | Path | None = None,
    options: DataOptions = DataOptions(),  # noqa: B008
    recipe: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Report | None = None,
    note: Note = lambda text: None,
) -> Evaluation | AccuracyEvaluation:
    """Measure perplexity, or of an image classifier accuracy, at each precision, beside full precision.

    Full precision of an artifact with a store is its 8-bit master; `original` compares with the model itself.

    Args:
        model: the directory of an artifact; a model by `quept.load`, which is measured as it was loaded; or a plain
            Hugging Face model, of which full precision and rounding are measured.
        data: text or images: a file, a folder, or the name of a data set.
        bits: precisions as in `2-8`, `4` or `[2, "w4a8"]`; None is all that there are, or with `plans` none.
        kv_bits: bit-width of keys and values; None is full precision.
        plans: files of precision plans to measure as well.
        baseline: whether to measure plain rounding to nearest too.
        original: the language model that was calibrated, to measure the KL divergence from its predictions.
        options: how much of the data, and in which pieces.
        recipe: whose granularity a plain model is rounded at.
        device: `auto`, `cpu` or `cuda`, for a path.
        dtype: `auto`, `float32`, `bfloat16` or `float16`, for a path.
        progress: told what is measured, units done and in total.
        note: told of data that could not be read, and of what is left out of a plain model.

    Raises `InvalidInput` for what cannot be opened, and for precisions that were not calibrated.
    """
    if plans and kv_bits is not None:
        raise InvalidInput(
            '--kv-bits is not for plans, which say so themselves: add an entry like "model.layers.*": "kv4".'
        )
    named = {str(path): PrecisionPlan.read(path) for path in plans}
    wanted = read_precisions(bits)
    opened = open_any(model, recipe, device, dtype, note)
    if named and not opened.calibrated and not baseline:
        raise InvalidInput(f"Plans are for artifacts, which {model} is not; with --baseline it is rounded by them.")
    _check_options(opened, options, original, kv_bits)
    judge = opened.task.judge(opened.model, opened.processor, data, options, note=note)
    before = None if original is None else open_original(original, opened.model, note)
    chosen = () if wanted is None and plans else wanted or _calibrated(opened)
    twin = None if before is None or not opened.calibrated else roundable_twin(before, opened.model)
    measured = Measured(named, opened.calibrated, baseline, before, twin, opened.stored)
    precisions = [precision.with_keys_values(kv_bits) for precision in chosen]
    return judge.evaluate(opened.model, precisions, measured, progress)


def _check_options(opened: Opened, options: DataOptions, original: str | Path | None, kv_bits: int | None) -> None:
    """Raise `InvalidInput` for an option without a meaning for the model's task."""
    opened.task.check_options(
        original=None if original is None else str(original),
        kv_bits=kv_bits,
        sequence_length=options.sequence_length,
        stride=options.stride,
        max_tokens=options.max_tokens,
        max_images=options.max_images,
    )


def _calibrated(opened: Opened) -> list[Precision]:
    """Return the bit-widths of the linears that have a choice."""
    groups = (layer.spec.groups for layer in elastic_linears(opened.model).values() if not layer.spec.fixed)
    return [Precision(weights=bits) for bits in next(groups).bits]
