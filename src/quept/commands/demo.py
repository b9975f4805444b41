"""`quept.demo`: the main job on a built-in model."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quept import builtin, calibration
from quept.calibration import Progress, Report
from quept.commands.evaluate import evaluate
from quept.config import Recipe
from quept.errors import InvalidInput
from quept.evaluation import AccuracyEvaluation, Evaluation
from quept.evaluation.judges import DataOptions
from quept.evaluation.judges import Report as MeasuringReport
from quept.files import checked_path, explained
from quept.recipes import load_recipe

BITS = (2, 3, 4, 5, 6, 7, 8)
PLOTS = ("accuracy.html", "accuracy.png")


@dataclass(frozen=True)
class Demonstration:
    """A built-in model, its data, how much of both shows what calibration gains, and what to try next.

    `training` shortens any recipe; `fitted` are changes of the default recipe, by section, that suit so small a model.
    """

    title: str
    model: Path
    calibration: Path
    test: Path
    recipe: str
    training: dict[str, Any]
    fitted: dict[str, dict[str, Any]]
    samples: int
    sequence_length: int | None
    test_tokens: int | None
    next: str

    def shortened(self, recipe: str | None) -> Recipe:
        """Return a recipe, or (None) the default one, as short as the demonstration."""
        found = load_recipe(recipe or self.recipe).with_bits(BITS)
        found = found.updated(reconstruction=found.reconstruction.updated(**self.training))
        if recipe in (None, self.recipe):
            for section, changes in self.fitted.items():
                found = found.updated(**{section: getattr(found, section).updated(**changes)})
        return found


@dataclass(frozen=True)
class Demonstrated:
    """The artifact of a demonstration, its calibration and its evaluation."""

    demonstration: Demonstration
    artifact: Path
    report: Report
    evaluation: Evaluation | AccuracyEvaluation

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation, with the calibration under its name, as a dictionary for `json.dump`."""
        return {**self.evaluation.to_json(), "calibration": self.report.to_json()}


def demonstrations() -> dict[str, Demonstration]:
    """Return the demonstrations by name."""
    language = Demonstration(
        title="built-in language model",
        model=builtin.model_path(),
        calibration=builtin.calibration_text_path(),
        test=builtin.test_text_path(),
        recipe="best",
        training={"epochs": 6, "batch_size": 8},
        fitted={
            # In so few steps, those at high bit-widths must not be rare.
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
        training={},
        fitted={},
        samples=256,
        sequence_length=None,
        test_tokens=None,
        next="quept evaluate {artifact} --data {test} --bits w4a4,w4a8,w4a16",
    )
    return {"language": language, "vision": vision}


def demonstration(name: str) -> Demonstration:
    """Return a demonstration by name; raises `InvalidInput` for one that there is not."""
    known = demonstrations()
    if name not in known:
        raise InvalidInput(f"There is no built-in model {name!r}; choose one of {', '.join(known)}.")
    return known[name]


def demo(
    model: str = "language",
    output: str | Path = "quept-demo",
    *,
    recipe: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    measuring: MeasuringReport | None = None,
) -> Demonstrated:
    """Calibrate a built-in model at 2 to 8 bits, and measure what that gains over rounding.

    Args:
        model: `language`, a small Llama with rounded weights, or `vision`, a small vision transformer for handwritten
            digits with rounded weights and activations.
        output: directory of the artifact; an earlier demonstration in it is replaced.
        recipe: another recipe than the recommended one, made as short.
        seed: of the data choice, the adapters and the sampling.
        progress: told of the calibration.
        measuring: told of the evaluation.
    """
    chosen, output = demonstration(model), Path(output)
    shortened = chosen.shortened(recipe)  # a recipe that there is not is told before anything is removed
    _clear(output)
    artifact = output / "artifact"
    report = calibration.calibrate(
        chosen.model,
        artifact,
        data=chosen.calibration,
        recipe=shortened,
        samples=chosen.samples,
        sequence_length=chosen.sequence_length,
        seed=seed,
        device="cpu",
        progress=progress,
    )
    original = None if chosen.test_tokens is None else chosen.model
    options = DataOptions(max_tokens=chosen.test_tokens)
    measured = evaluate(artifact, chosen.test, baseline=True, original=original, options=options, progress=measuring)
    return Demonstrated(chosen, artifact, report, measured)


def _clear(output: Path) -> None:
    """Make room in `output`: remove what an earlier demonstration wrote, and refuse anything else."""
    own = {"artifact", "artifact.partial", *PLOTS}
    checked_path(output, "output")
    if output.exists() and not output.is_dir():
        raise InvalidInput(f"{output} is a file; choose another directory with --output.")
    with explained(output):
        entries = {entry.name for entry in output.iterdir()} if output.exists() else set()
    if foreign := sorted(entries - own):
        raise InvalidInput(f"{output} holds other files ({foreign[0]}); choose another directory with --output.")
    with explained(output):
        for name in entries:
            entry = output / name
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        output.mkdir(parents=True, exist_ok=True)
