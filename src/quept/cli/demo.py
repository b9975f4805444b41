"""`quept demo`."""

from pathlib import Path
from typing import Annotated

import typer

from quept.cli.console import check_target, out, write_json
from quept.cli.options import JsonFile, Quiet
from quept.cli.progress import display
from quept.errors import QueptError


def demo(
    model: Annotated[
        str,
        typer.Argument(
            help="Which built-in model: language, a small Llama with rounded weights, or vision, a small vision "
            "transformer for handwritten digits with rounded weights and activations."
        ),
    ] = "language",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory; an earlier demo in it is replaced.")
    ] = Path("quept-demo"),
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Another recipe than the recommended one: paper is the method as published. As short as the demo."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the data choice, the adapters and the sampling.")] = 0,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Calibrate a built-in model at 2 to 8 bits, and show what that gains over rounding.

    Writes the artifact and a plot of divergence or accuracy against bits, as PNG and as a self-contained HTML page.
    Takes about a minute on two CPU cores.
    """
    check_target("--json", json_file)
    from quept import commands
    from quept.cli.drawings import curve
    from quept.cli.tables import calibration, evaluation
    from quept.plots import write_plot

    chosen, console, artifact = commands.demonstration(model), out(quiet, json_file), output / "artifact"
    console.print(f"Calibrating the {chosen.title} once for 2 to 8 bits, into {artifact}")
    with display(quiet, "starting") as shown:
        told = calibration.CalibrationDisplay(shown)
        found = commands.demo(model, output, recipe=recipe, seed=seed, progress=told, measuring=shown.show)
    evaluation.show(found.evaluation, chosen.title, console)
    plots = [output / name for name in commands.PLOTS]
    try:
        for path in plots:
            write_plot(curve(found.evaluation, chosen.title), path)
        console.print(f"Plots: {plots[0]} and {plots[1]}")
    except QueptError as error:  # plots need an extra; all else of the demo does not
        console.print(f"note: {plots[0]} and {plots[1]} are missing. {error}")
    console.print(
        f"Next:  {chosen.next.format(artifact=artifact, test=chosen.test)}\n"
        f"       quept evaluate {artifact} --data {chosen.test} --baseline --original {chosen.model}\n"
        f"       quept info {artifact}",
    )
    write_json(json_file, found.to_json())
