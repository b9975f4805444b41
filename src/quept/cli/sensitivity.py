"""`quept sensitivity`."""

from os.path import commonpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from quept.cli.console import (
    Device,
    Interrupted,
    JsonFile,
    ModelDtype,
    Quiet,
    check_plot,
    check_target,
    clean,
    out,
    show_table,
    write_json,
)
from quept.cli.progress import display
from quept.errors import InvalidInput

if TYPE_CHECKING:
    from quept.search.table import SensitivityTable


def sensitivity(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="An artifact.")],
    data: Annotated[
        str,
        typer.Option(help="Text or images, as for quept calibrate; better other ones than it was given."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The table, a JSON file.")],
    metric: Annotated[
        str,
        typer.Option(help="kl: run the model for every linear and width. gradient: estimate from one backward pass."),
    ] = "kl",
    kv_bits: Annotated[
        str | None, typer.Option(help="Also keys and values at these widths, block by block: 2-8, or 2,4,8.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Windows of text (default: 16), or images (default: 256).")
    ] = None,
    sequence_length: Annotated[int | None, typer.Option(help="Tokens per window. Default: as calibrated.")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of windows.")] = 0,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="Tell the rank correlation with another table of this artifact."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw the table as a heat map: a .png or .html file."),
    ] = None,
    device: Device = "auto",
    dtype: ModelDtype = "auto",
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure what each linear costs in accuracy at each width, once; [bold]quept allocate[/] plans with it.

    One linear at a time is quantized, and the KL divergence of the predictions to full precision is noted. The table is
    saved block by block: after an interruption the same command goes on, and ends in the same file.
    """
    check_plot("--plot", plot)
    check_target("--output", output)
    check_target("--json", json_file)
    from quept.plots import write_plot
    from quept.search.measurement import measure_table
    from quept.search.table import SensitivityTable, rank_correlation

    other = None if compare is None else SensitivityTable.read(compare)
    console = out(quiet, json_file)
    with display(quiet, "opening the model and the data") as shown:
        target, origin = open_target(
            directory,
            data,
            metric=metric,
            kv_bits=kv_bits,
            samples=samples,
            sequence_length=sequence_length,
            seed=seed,
            device=device,
            dtype=dtype,
        )
        if other is not None:
            other.check_model(origin.model, str(compare))
        try:
            table = measure_table(
                target,
                origin,
                output,
                progress=shown.show,
                note=lambda text: console.print(f"note: {clean(text)}"),
            )
        except KeyboardInterrupt:
            raise Interrupted("Interrupted. The same command goes on from the last finished block.") from None
    show(table, console)
    report: dict[str, Any] = table.model_dump(mode="json")
    if other is not None:
        report["rank_correlation"] = rank_correlation(table, other)
        console.print(f"Rank correlation with {clean(str(compare))}: {report['rank_correlation']:.4f}")
    if plot is not None:
        write_plot(heat_map(table, directory), plot)
    console.print(f"Wrote {output}. Next: quept allocate {clean(directory)} --sensitivity {output} --average-bits 3.5")
    write_json(json_file, report)


def open_target(
    directory: str,
    data: str,
    *,
    metric: str,
    kv_bits: str | None,
    samples: int | None,
    sequence_length: int | None,
    seed: int,
    device: str,
    dtype: str,
) -> tuple[Any, Any]:
    """The artifact's model with what it is measured on, and what a table of it is named after."""
    from quept.cli.opening import choose_dtype
    from quept.config import parse_bits
    from quept.data import digest
    from quept.devices import choose_device
    from quept.models import architecture_of
    from quept.search.table import Origin, model_digest
    from quept.search.target import rows_of, search_target
    from quept.storage import load

    if metric not in ("kl", "gradient"):
        raise InvalidInput(f"The metric {metric!r} is not known; choose kl or gradient.")
    if metric == "gradient" and kv_bits is not None:
        raise InvalidInput("Gradients are of linears alone; use --metric kl for --kv-bits.")
    keys_values = () if kv_bits is None else parse_bits(kv_bits)
    where = choose_device(device)
    model = load(directory, device=where, dtype=choose_dtype(dtype, where), integers=False, packed=False)
    manifest = model.quept_manifest
    count = architecture_of(manifest.architecture).task.search_samples if samples is None else samples
    drawn = draw_samples(model, directory, data, count, sequence_length, seed)
    origin = Origin(
        metric=metric,
        model=model_digest(manifest),
        data=data,
        data_sha256=digest(drawn),
        rows=rows_of(model, drawn),
        keys_values=keys_values,
    )
    return search_target(model, drawn), origin


def draw_samples(model: Any, directory: str, data: str, samples: int, sequence_length: int | None, seed: int) -> Any:
    """Samples for an artifact's model, drawn and prepared as for its calibration."""
    from quept.models import architecture_of

    def note(text: str) -> None:
        Console(stderr=True).print(f"note: {clean(text)}", highlight=False, markup=False)

    task, config = architecture_of(model.config.model_type).task, model.config
    recipe = task.fit(model.quept_manifest.recipe, config, data, samples, sequence_length, note)
    return task.draw(data, task.open_processor(directory, config), config, recipe, seed=seed, note=note)


def show(table: "SensitivityTable", console: Console) -> None:
    """The table for people: the most and the least sensitive parts stand out by their figures."""
    widths = list(dict.fromkeys(width for errors in table.parts.values() for width in errors))
    shared = commonpath([path.replace(".", "/") for path in table.parts]).replace("/", ".")
    prefix = f"{shared}." if shared and shared not in table.parts else ""
    rows = [
        (path[len(prefix) :], *(f"{errors[width]:.1e}" if width in errors else "-" for width in widths))
        for path, errors in table.parts.items()
    ]
    heading = f"KL divergence in nats per prediction, {table.origin.rows:,} predictions"
    show_table(console, heading, (f"in {prefix}" if prefix else "part", *widths), rows)


def heat_map(table: "SensitivityTable", title: str) -> Any:
    """What is drawn of a table."""
    from quept.plots import HeatMap

    return HeatMap(f"Sensitivity of {title}", "KL divergence", table.parts)
