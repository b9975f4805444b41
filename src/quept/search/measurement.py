"""A sensitivity table in the making: written after every block, so that a run that was interrupted can go on."""

from collections.abc import Callable
from pathlib import Path

from quept.errors import InvalidInput
from quept.files import checked_path, explained
from quept.search.expansion import expand
from quept.search.sensitivity import Progress, measure
from quept.search.table import Origin, SensitivityTable
from quept.search.target import SearchTarget


def measure_table(
    target: SearchTarget,
    origin: Origin,
    output: Path,
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> SensitivityTable:
    """Measure a model's sensitivities and write them to `output`.

    While the run lasts, what is finished is in `<output>.partial`; the same call goes on from there, and ends in the
    same bytes as one that was not interrupted. A table of the same `origin` that is complete is not made again.

    Args:
        subject: the model and its inputs.
        origin: what they are, and what is to be measured.
        output: the JSON file.
        progress: told what is measured, passes done and in total.
        note: told what the user should know.

    Raises `InvalidInput` where `output`, or unfinished work beside it, is of another origin.
    """
    note = note or (lambda text: None)
    if not checked_path(output, "output").name or not output.name:
        raise InvalidInput(f"The output {str(output)!r} is not the name of a file; choose another.")
    partial = output.with_name(output.name + ".partial")
    checked_path(partial, "output")
    if output.exists():
        table = _same(SensitivityTable.read(output), origin, output)
        note(f"{output} is already complete.")
        return table
    if origin.metric == "gradient":
        expansion = expand(target, progress=progress)
        table = SensitivityTable(origin=origin, parts=expansion.errors()).with_pairs(expansion)
    else:
        before = None
        if partial.exists():
            before = _same(SensitivityTable.read(partial), origin, partial).parts
            note(f"Going on with {partial}, which holds {len(before)} parts.")
        parts = measure(
            target,
            keys_values=origin.keys_values,
            before=before,
            save=lambda found: SensitivityTable(origin=origin, parts=found).write(partial),
            progress=progress,
        )
        expansion = expand(target, progress=progress)
        table = SensitivityTable(origin=origin, parts=parts).with_pairs(expansion)
    table.write(output)
    with explained(partial):
        partial.unlink(missing_ok=True)
    return table


def _same(table: SensitivityTable, origin: Origin, path: Path) -> SensitivityTable:
    if table.origin != origin:
        mine, theirs = origin.model_dump(), table.origin.model_dump()
        differing = ", ".join(name for name in mine if mine[name] != theirs[name])
        raise InvalidInput(
            f"{path} belongs to another measurement: {differing} differ from this command's. Choose another output, or "
            "remove it."
        )
    return table
