"""`quept calibrate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from quept.cli.console import Interrupted, check_target, clean, out, write_json
from quept.cli.options import (
    ActivationBits,
    CalibratedTokens,
    Compiled,
    Data,
    Device,
    JsonFile,
    Quiet,
    RecipeName,
    StreamMemory,
    Strict,
)
from quept.cli.progress import display


def calibrate(
    model: Annotated[str, typer.Argument(help="A Hugging Face model: a directory, or a Hub name like org/model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the artifact; must not exist yet.")],
    data: Data,
    recipe: RecipeName = None,
    bits: Annotated[str | None, typer.Option(help="Bit-widths: 2-8, or 2,4,8. Default: the recipe's.")] = None,
    activation_bits: ActivationBits = None,
    samples: Annotated[int | None, typer.Option(help="Windows of text, or images. Default: the recipe's.")] = None,
    sequence_length: CalibratedTokens = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data per block.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows or images per optimizer step.")] = None,
    group_size: Annotated[int | None, typer.Option(help="Inputs per scale at the recipe's grouped bits.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank that each bit group adds to the adapter.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same machine: same artifact, byte for byte.")] = 0,
    device: Device = "auto",
    compiled: Compiled = None,
    stream_memory: StreamMemory = 8.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run of this command.")] = False,
    strict: Strict = False,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Calibrate a model once, for every bit-width: a causal language model, or a vision transformer for classification.

    The recipes [bold]best[/] and [bold]paper[/] are for weights alone, [bold]weight-activation-best[/] and
    [bold]weight-activation[/] for weights and activations together; [bold]vision-best[/] and [bold]vision[/] are for
    weights and activations of image classifiers, [bold]vision-weights[/] for their weights alone.

    Reads the model and a little data, and writes a directory that runs at each bit-width, chosen at load time or while
    it runs: see [bold]quept evaluate[/], [bold]quept generate[/], and quept.load in Python.
    """
    check_target("--json", json_file)
    from quept import commands
    from quept.cli.tables.calibration import CalibrationDisplay, show

    what: dict[str, Any] = {"recipe": recipe, "bits": bits, "activation_bits": activation_bits}
    what |= {"epochs": epochs, "batch_size": batch_size, "group_size": group_size, "rank": rank}
    what |= {"samples": samples, "sequence_length": sequence_length, "strict": strict, "seed": seed}
    how: dict[str, Any] = {"device": device, "compiled": compiled, "stream_memory": int(stream_memory * 10**9)}
    with display(quiet, "opening the model and the data") as shown:
        told = CalibrationDisplay(shown)
        try:
            report = commands.calibrate(model, output, data=data, **what, **how, resume=resume, progress=told)
        except KeyboardInterrupt:
            raise Interrupted(
                "Interrupted. Where blocks were finished, the same command with --resume goes on."
            ) from None
    console = out(quiet, json_file)
    show(report, console)
    minutes = f" in {report.total_seconds / 60:.1f} minutes" if report.total_seconds else ""
    console.print(f"Wrote {clean(str(output))}{minutes}. Next: quept evaluate {output} --data DATA")
    write_json(json_file, {**report.to_json(), "notes": told.notes})
