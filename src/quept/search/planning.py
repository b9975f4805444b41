"""Sensitivities and plans of a loaded model, in Python."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from quept.data import digest
from quept.errors import InvalidInput
from quept.models import architecture_of
from quept.search.allocation import Allocation, Constraints, Problem
from quept.search.cost import Budget, Costs, Count
from quept.search.measurement import measure_table
from quept.search.sensitivity import Progress
from quept.search.table import Metric, Origin, SensitivityTable, model_digest
from quept.search.target import rows_of, search_target
from quept.storage import DTYPES


def measure_sensitivity(
    model: Any, samples: Tensor, output: str | Path, *, metric: Metric = "kl", progress: Progress | None = None
) -> SensitivityTable:
    """What each linear of a model costs in accuracy at each width, written to `output`; see `measure_table`.

    Args:
        model: a model by `quept.load`.
        samples: token windows, integers of shape (samples, tokens), or images as the model takes them.
        output: the JSON file; an interrupted measurement goes on from `<output>.partial`.
        metric: `kl` runs the model for every linear and width, `gradient` estimates from one backward pass.
        progress: told what is measured, passes done and in total.
    """
    origin = Origin(
        metric=metric,
        model=model_digest(_manifest(model)),
        data="samples",
        data_sha256=digest(samples),
        rows=rows_of(model, samples),
    )
    return measure_table(search_target(model, samples), origin, Path(output), progress=progress)


def allocate(
    model: Any,
    table: SensitivityTable,
    *,
    average_bits: float | None = None,
    max_bytes: int | None = None,
    count: Count = "bytes",
    bits: Sequence[int] | None = None,
    fixed: Mapping[str, int] | None = None,
    free: bool = False,
    pairs: bool = True,
) -> Allocation:
    """The plan with the least expected divergence within a budget: an average width, or bytes of the whole model.

    Args:
        model: a model by `quept.load`; no weight of it is read.
        table: its sensitivities.
        average_bits: bits per weight, scales and zero points included; with `count="layers"` the mean width.
        max_bytes: what the packed model may take, embeddings included.
        count: what the average is over, bytes or layers.
        bits: widths to choose from; None is all that there are.
        fixed: widths of linears by path or pattern.
        free: let linears that read the same tensor differ, which engines that fuse them cannot run.
        pairs: heed what linears add to one another; otherwise the sum of sensitivities is made least, exactly.

    Raises `InvalidInput` for a table of another model, and for a budget that is too small.
    """
    manifest = _manifest(model)
    table.check_model(model_digest(manifest), "The table")
    together = () if free else architecture_of(manifest.architecture).shared_input_groups(model)
    constraints = Constraints(None if bits is None else tuple(bits), fixed or {}, together)
    costs = Costs.of(model, DTYPES[manifest.dtype])
    return Problem(table, costs, constraints, count, pairs).solve(Budget(average_bits, max_bytes, count))


def _manifest(model: Any) -> Any:
    manifest = getattr(model, "quept_manifest", None)
    if manifest is None:
        raise InvalidInput(f"This {type(model).__name__} was not loaded by quept.load; load an artifact.")
    return manifest
