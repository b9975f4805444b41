"""`quept demo`."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quept.cli import calibrate as calibration
from quept.cli import evaluate as evaluation
from quept.cli.console import JsonFile, Quiet, check_target, out, write_json
from quept.cli.progress import display
from quept.errors import InvalidInput, QueptError

if TYPE_CHECKING:
    from quept.config import Recipe

BITS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class Demonstration:
    """A built-in model, its data, how much of both is enough to see what calibration gains, and what to try next."""

    title: str
    model: Path
    calibration: Path
    test: Path
    recipe: str
    bits: tuple[int, ...]
    training: dict[str, Any]  # of any recipe: shorter
    fitted: dict[str, dict[str, Any]]  # of the default recipe, by section: what suits so small a model
    samples: int
    sequence_length: int | None
    test_tokens: int | None
    next: str


def _known() -> dict[str, Demonstration]:
    from quept import builtin

    language = Demonstration(
        title="built-in language model",
        model=builtin.model_path(),
        calibration=builtin.calibration_text_path(),
        test=builtin.test_text_path(),
        recipe="best",
        bits=BITS,
        training={"epochs": 6, "batch_size": 8},
        fitted={
            # In so few steps, those at high widths must not be rare.
            "reconstruction": {"train_every": (0, 2, 2, 2, 1, 1, 1)},
            # Rows of 64 inputs: scales of half a row make a finer master, and 7 bits then have room for an adapter.
            "store": {"group_size": 32},
            "adapter": {"bits": (5, 6, 7)},
        },
        samples=112,
        sequence_length=128,
        test_tokens=12_800,
        next="quept generate {artifact} --bits 4 --prompt 'The tailor and the pewter box.'",
    )
    vision = Demonstration(
        title="built-in vision transformer",
        model=builtin.vision_model_path(),
        calibration=builtin.calibration_images_path(),
        test=builtin.test_images_path(),
        recipe="demo-vision",
        bits=BITS,
        training={},
        fitted={},
        samples=256,
        sequence_length=None,
        test_tokens=None,
        next="quept evaluate {artifact} --data {test} --bits w4a4,w4a8,w4a16",
    )
    return {"language": language, "vision": vision}


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
    known = _known()
    if model not in known:
        raise InvalidInput(f"There is no built-in model {model!r}; choose one of {', '.join(known)}.")
    chosen = known[model]
    shortened = _shortened(chosen, recipe)  # a recipe that there is not is told before anything is removed
    _clear(output)
    artifact = output / "artifact"
    console = out(quiet, json_file)
    console.print(f"Calibrating the {chosen.title} once for 2 to 8 bits, into {artifact}")
    with display(quiet, "starting") as shown:
        from quept.calibration import calibrate

        report = calibrate(
            chosen.model,
            artifact,
            data=chosen.calibration,
            recipe=shortened,
            samples=chosen.samples,
            sequence_length=chosen.sequence_length,
            seed=seed,
            device="cpu",
            progress=calibration.CalibrationDisplay(shown),
        )
    original = None if chosen.test_tokens is None else str(chosen.model)
    with display(quiet, "opening the artifact") as shown:
        measured = evaluation.measure(
            str(artifact),
            str(chosen.test),
            shown,
            baseline=True,
            original=original,
            max_tokens=chosen.test_tokens,
        )
    evaluation.show(measured, chosen.title, console)
    plots = (output / "accuracy.html", output / "accuracy.png")
    try:
        for path in plots:
            evaluation.draw(measured, chosen.title, path)
        console.print(f"Plots: {plots[0]} and {plots[1]}")
    except QueptError as error:  # plots need an extra; all else of the demo does not
        console.print(f"note: {plots[0]} and {plots[1]} are missing. {error}")
    console.print(
        f"Next:  {chosen.next.format(artifact=artifact, test=chosen.test)}\n"
        f"       quept evaluate {artifact} --data {chosen.test} --baseline --original {chosen.model}\n"
        f"       quept info {artifact}",
    )
    write_json(json_file, {**measured.to_json(), "calibration": calibration.to_json(report)})


def _shortened(chosen: Demonstration, recipe: str | None) -> "Recipe":
    from quept.recipes import load_recipe

    found = load_recipe(recipe or chosen.recipe).with_bits(chosen.bits)
    found = found.updated(reconstruction=found.reconstruction.updated(**chosen.training))
    if recipe in (None, chosen.recipe):
        for section, changes in chosen.fitted.items():
            found = found.updated(**{section: getattr(found, section).updated(**changes)})
    return found


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
