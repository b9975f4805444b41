"""`quept demo`."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from quept.cli import calibrate as calibration
from quept.cli import evaluate as evaluation
from quept.cli.console import JsonFile, Quiet, bar, check_target, out, write_json
from quept.errors import InvalidInput, QueptError

TITLE = "built-in model"


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory; an earlier demo in it is replaced.")
    ] = Path("quept-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the data choice, the adapters and the sampling.")] = 0,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Calibrate the built-in model at 2 to 8 bits, and show what that gains over rounding.

    Writes the artifact and a plot of accuracy against bits, as PNG and as a self-contained HTML page. Takes under
    three minutes on two CPU cores.
    """
    from quept import builtin
    from quept.calibration import calibrate

    check_target("--json", json_file)
    _clear(output)
    artifact = output / "artifact"
    console = out(quiet, json_file)
    console.print(f"Calibrating the built-in model once for 2 to 8 bits, into {artifact}")
    with bar(quiet) as progress:
        report = calibrate(
            builtin.model_path(),
            artifact,
            data=builtin.calibration_text_path(),
            recipe="demo",
            seed=seed,
            device="cpu",
            progress=calibration.Display(progress),
        )
    text = builtin.test_text_path()
    measured = evaluation.measure(str(artifact), str(text), baseline=True, quiet=quiet)
    evaluation.show(measured, TITLE, console)
    html, png = output / "accuracy.html", output / "accuracy.png"
    evaluation.draw(measured, TITLE, html)
    try:
        evaluation.draw(measured, TITLE, png)
    except QueptError as error:  # the PNG needs an extra; all else of the demo does not
        console.print(f"note: {error}")
    console.print(
        f"Plots: {html} and {png}\n"
        f"Next:  quept generate {artifact} --bits 4 --prompt 'The tailor and the pewter box.'\n"
        f"       quept evaluate {artifact} --data {text} --baseline\n"
        f"       quept info {artifact}",
    )
    write_json(json_file, {**measured.to_json(), "calibration": calibration.to_json(report)})


def _clear(output: Path) -> None:
    """Make room in `output`: remove what an earlier demo wrote, and refuse anything else."""
    own = {"artifact", "artifact.partial", "accuracy.html", "accuracy.png"}
    if output.exists() and not output.is_dir():
        raise InvalidInput(f"{output} is a file; choose another directory with --output.")
    entries = {entry.name for entry in output.iterdir()} if output.exists() else set()
    if foreign := sorted(entries - own):
        raise InvalidInput(f"{output} holds other files ({foreign[0]}); choose another directory with --output.")
    for name in entries:
        entry = output / name
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    output.mkdir(parents=True, exist_ok=True)
