"""`quept calibrate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from quept.cli.console import (
    Device,
    Interrupted,
    JsonFile,
    Quiet,
    check_target,
    clean,
    out,
    show_table,
    write_json,
)
from quept.cli.progress import Display, display
from quept.errors import InvalidInput

if TYPE_CHECKING:
    from quept.calibration import Report
    from quept.config import Recipe


def calibrate(
    model: Annotated[str, typer.Argument(help="A Hugging Face model: a directory, or a Hub name like org/model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the artifact; must not exist yet.")],
    data: Annotated[
        str,
        typer.Option(
            help="Text: a .txt, .jsonl or .parquet file, or one of wikitext2, ptb, c4, pile, redpajama. Images: a "
            "folder of class folders, a .npz, .parquet or .tar file, or a data set of the Hub."
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(help="A shipped recipe's name, or a TOML file. Default: best, or for images vision-best."),
    ] = None,
    bits: Annotated[str | None, typer.Option(help="Precision: 2-8, or 2,4,8. Default: the recipe's.")] = None,
    activation_bits: Annotated[
        str | None,
        typer.Option(help="Bit-widths of activations, where the recipe has them. Default: the same as of weights."),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Windows of text, or images. Default: the recipe's.")] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(help="Tokens per window. Default: the recipe's, or the model's limit if lower."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data per block.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows or images per optimizer step.")] = None,
    group_size: Annotated[int | None, typer.Option(help="Inputs per scale at the recipe's grouped widths.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank that each bit group adds to the adapter.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same machine: same artifact, byte for byte.")] = 0,
    device: Device = "auto",
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Train compiled code. Default: where that saves time, on a CPU."),
    ] = None,
    stream_memory: Annotated[
        float,
        typer.Option(metavar="GB", help="Hidden states held in memory; beyond it they live in mapped files."),
    ] = 8.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run of this command.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at an image that cannot be read.")] = False,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Calibrate a model once, for every width: a causal language model, or a vision transformer for classification.

    The recipes [bold]best[/] and [bold]paper[/] are for weights alone, [bold]weight-activation-best[/] and
    [bold]weight-activation[/] for weights and activations together; [bold]vision-best[/] and [bold]vision[/] are for
    weights and activations of image classifiers, [bold]vision-weights[/] for their weights alone.

    Reads the model and a little data, and writes a directory that runs at each width, chosen at load time or while
    it runs: see [bold]quept evaluate[/], [bold]quept generate[/], and quept.load in Python.
    """
    check_target("--json", json_file)
    from quept.calibration import calibrate as run
    from quept.models import architecture_of
    from quept.models.checkpoint import read_config
    from quept.recipes import load_recipe

    chosen = override(
        load_recipe(architecture_of(read_config(model).model_type).task.default_recipe if recipe is None else recipe),
        bits=bits,
        activation_bits=activation_bits,
        epochs=epochs,
        batch_size=batch_size,
        group_size=group_size,
        rank=rank,
    )
    with display(quiet, "opening the model and the data") as shown:
        told = CalibrationDisplay(shown)
        try:
            report = run(
                model,
                output,
                data=data,
                recipe=chosen,
                samples=samples,
                sequence_length=sequence_length,
                seed=seed,
                device=device,
                resume=resume,
                compiled=compiled,
                strict=strict,
                stream_memory=int(stream_memory * 10**9),
                progress=told,
            )
        except KeyboardInterrupt:
            raise Interrupted(
                "Interrupted. Where blocks were finished, the same command with --resume goes on."
            ) from None
    show(report, out(quiet, json_file))
    write_json(json_file, {**to_json(report), "notes": told.notes})


def override(
    recipe: "Recipe",
    *,
    bits: str | None = None,
    activation_bits: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    group_size: int | None = None,
    rank: int | None = None,
) -> "Recipe":
    """The recipe with what the command line sets."""
    from quept.config import parse_bits

    if bits is not None:
        recipe = recipe.with_bits(parse_bits(bits))
    changes: dict[str, Any] = {}
    if activation_bits is not None:
        if not recipe.activations.bits:
            raise InvalidInput(
                f"The recipe {recipe.name} leaves activations at full precision, so --activation-bits has no meaning; "
                "choose a recipe such as weight-activation-best or vision-best."
            )
        changes["activations"] = recipe.activations.updated(bits=parse_bits(activation_bits))
    if epochs is not None or batch_size is not None:
        given = {"epochs": epochs, "batch_size": batch_size}
        changes["reconstruction"] = recipe.reconstruction.updated(**{k: v for k, v in given.items() if v is not None})
    if group_size is not None:
        changes["granularity"] = recipe.granularity.updated(group_size=group_size)
    if rank is not None:
        changes["adapter"] = recipe.adapter.updated(rank=rank)
    return recipe.updated(**changes) if changes else recipe


class CalibrationDisplay:
    """Passes a calibration's progress on to a display, and keeps its notes."""

    def __init__(self, shown: Display) -> None:
        self.shown, self.notes = shown, list[str]()
        self._blocks = self._steps = self._block = self._done = 0
        self._stage = ""

    def stage(self, name: str) -> None:
        """Another phase begins; training changes between two with every step."""
        name = "training" if name in ("forward and backward", "optimizer") else name
        if name != self._stage:
            self._stage = name
            self._show("")

    def start(self, blocks: int, steps: int) -> None:
        """Now the amount of work is known."""
        self._blocks, self._steps = blocks, steps
        self._show("")

    def step(self, block: int, step: int, loss: float) -> None:
        """One more step."""
        self._done = block * self._steps + step
        self._block = block  # until the next one's first step: what follows the last is still about this one
        self._show("read back" if loss != loss else f"loss {loss:.4g}")

    def note(self, text: str) -> None:
        """Keep and show a note."""
        self.notes.append(text)
        self.shown.note(text)

    def _show(self, detail: str) -> None:
        if not self._blocks:
            self.shown.show(self._stage)
            return
        label = f"block {self._block + 1}/{self._blocks}, {self._stage}"
        self.shown.show(label, self._done, self._blocks * self._steps, detail)


def show(report: "Report", console: Console) -> None:
    """The final table: how much of rounding's block error remains at each width."""
    rows = []
    for bits in report.manifest.recipe.bits:
        errors = [error for error in report.manifest.block_errors if error.bits == bits]
        rounding = sum(error.rounding for error in errors) / len(errors)
        calibrated = sum(error.calibrated for error in errors) / len(errors)
        share = calibrated / rounding if rounding else 1.0
        rows.append((report.manifest.recipe.label(bits), f"{rounding:.4g}", f"{calibrated:.4g}", f"{share:.2f}"))
    title = "Mean error of the blocks against full precision"
    show_table(console, title, ("bits", "rounding", "calibrated", "ratio"), rows)
    minutes = f" in {report.total_seconds / 60:.1f} minutes" if report.total_seconds else ""
    console.print(f"Wrote {clean(str(report.directory))}{minutes}. Next: quept evaluate {report.directory} --data DATA")


def to_json(report: "Report") -> dict[str, Any]:
    """The report for `--json`."""
    return {
        "output": report.directory,
        "total_seconds": report.total_seconds,
        "seconds": report.seconds,
        "trained_tokens": report.trained_tokens,
        "stream_bytes": report.stream_bytes,
        "manifest": report.manifest.model_dump(mode="json"),
    }
