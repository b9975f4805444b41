"""`quept sensitivity`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from quept.cli.console import Interrupted, check_plot, check_target, clean, out, write_json
from quept.cli.options import (
    ArtifactDir,
    ComparedTable,
    Device,
    HeatMapPlot,
    JsonFile,
    MeasuredKvBits,
    MetricName,
    ModelDtype,
    OtherData,
    Quiet,
    SampleCount,
    WindowTokens,
)
from quept.cli.progress import display


def sensitivity(
    directory: ArtifactDir,
    data: OtherData,
    output: Annotated[Path, typer.Option("--output", "-o", help="The table, a JSON file.")],
    metric: MetricName = "kl",
    kv_bits: MeasuredKvBits = None,
    samples: SampleCount = None,
    sequence_length: WindowTokens = None,
    seed: Annotated[int, typer.Option(help="Of the choice of windows.")] = 0,
    compare: ComparedTable = None,
    plot: HeatMapPlot = None,
    device: Device = "auto",
    dtype: ModelDtype = "auto",
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure the cost in accuracy of each linear at each bit-width, once; [bold]quept allocate[/] plans with it.

    One linear at a time is quantized, and the KL divergence of the predictions to full precision is noted. The table is
    saved block by block: after an interruption the same command goes on, and ends in the same file.
    """
    check_plot("--plot", plot)
    check_target("--output", output)
    check_target("--json", json_file)
    from quept import commands
    from quept.cli.tables.planning import show_sensitivities
    from quept.search.table import rank_correlation

    other = None if compare is None else commands.open_table(compare, directory)
    console = out(quiet, json_file)
    what: dict[str, Any] = {"metric": metric, "kv_bits": kv_bits, "device": device, "dtype": dtype}
    amount: dict[str, Any] = {"samples": samples, "sequence_length": sequence_length, "seed": seed}
    with display(quiet, "opening the model and the data") as shown:
        try:
            table = commands.sensitivity(
                directory, data, output, **what, **amount, progress=shown.show, note=shown.note
            )
        except KeyboardInterrupt:
            raise Interrupted("Interrupted. The same command goes on from the last finished block.") from None
    show_sensitivities(table, console)
    report: dict[str, Any] = table.model_dump(mode="json")
    if other is not None:
        report["rank_correlation"] = rank_correlation(table, other)
        console.print(f"Rank correlation with {clean(str(compare))}: {report['rank_correlation']:.4f}")
    if plot is not None:
        from quept.cli.drawings import heat_map
        from quept.plots import write_plot

        write_plot(heat_map(table, directory), plot)
    console.print(f"Wrote {output}. Next: quept allocate {clean(directory)} --sensitivity {output} --average-bits 3.5")
    write_json(json_file, report)
