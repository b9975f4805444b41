"""Image classifiers at every width: rounding in three ways, the paper's recipe, and `vision-best`.

    python benchmarks/vision/table.py MODEL --calibration IMAGES --test IMAGES --output results.json

Each row is one calibration for all widths, measured on the same test images; a row that stands in the output is not run
again. Prints top-1 points lost to full precision, with the standard error of the paired difference, and divergences.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import quept
from quept.config import Recipe, parse_bits
from quept.data import load_images
from quept.evaluation import evaluate_accuracy
from quept.models.images import open_image_processor

UNCLIPPED = 12.0  # a logit: 0.99999 of the range


def rounding(start: str, reparameterized: bool) -> Recipe:
    """Ranges as they are placed, and nothing trained."""
    paper = quept.load_recipe("vision")
    return paper.updated(
        adapter={"kind": "none"},
        activations=paper.activations.updated(range_init=start),
        reparameterization={"enabled": reparameterized},
        reconstruction={"epochs": 0, "clip_init": UNCLIPPED},
        merging={"strategy": "per-group"},
    )


def ablation(**changes: dict[str, object]) -> Recipe:
    """The paper's recipe in a quarter of its epochs, with something changed."""
    paper = quept.load_recipe("vision")
    changed = {key: getattr(paper, key).updated(**value) for key, value in changes.items()}
    return paper.updated(**{"reconstruction": paper.reconstruction.updated(epochs=5), **changed})


def rows() -> dict[str, Recipe]:
    """All rows by name."""
    best = quept.load_recipe("vision-best")
    return {
        "rounding, min-max": rounding("min-max", reparameterized=False),
        "rounding, percentile": rounding("percentile", reparameterized=False),
        "rounding, percentile, reparameterization": rounding("percentile", reparameterized=True),
        "vision (paper)": quept.load_recipe("vision"),
        "vision-best": best,
        "vision-best, fully reparameterized": best.updated(reparameterization={"enabled": True}),
        "vision-best, not reparameterized": best.updated(reparameterization={"enabled": False}),
        "vision-best, logarithmic probabilities": best.updated(activations=best.activations.updated(softmax="log")),
        "paper, 5 epochs": ablation(),
        "paper, 5 epochs, shared adapter": ablation(adapter={"kind": "shared"}),
        "paper, 5 epochs, independent adapters": ablation(adapter={"kind": "independent"}),
        "paper, 5 epochs, uniform fusion": ablation(merging={"strategy": "uniform"}),
        "paper, 5 epochs, random selection": ablation(merging={"strategy": "random"}),
        "paper, 5 epochs, single width": ablation(merging={"strategy": "single-width", "single_width": 8}),
        "vision-weights (weights alone)": quept.load_recipe("vision-weights"),
    }


def run(chosen: argparse.Namespace, name: str, recipe: Recipe) -> dict[str, object]:
    """One row."""
    config = quept.models.checkpoint.read_config(chosen.model)
    test = load_images(chosen.test, open_image_processor(chosen.model, config))
    if chosen.bits:
        recipe = recipe.with_bits(parse_bits(chosen.bits))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        output = chosen.artifacts / name if chosen.artifacts else Path(folder) / "artifact"
        artifact = quept.calibrate(
            chosen.model, output, data=chosen.calibration, recipe=recipe, seed=chosen.seed, device="cpu"
        ).directory
        seconds = time.perf_counter() - started
        evaluation = evaluate_accuracy(quept.load(artifact), test.batches(250), recipe.bits)
    return {
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "full_precision": evaluation.full_precision.top1,
        "images": evaluation.images,
        "widths": {
            str(result.bits): [100 * result.calibrated.lost, 100 * result.calibrated.lost_error, result.calibrated.kl]
            for result in evaluation.results
        },
    }


def show(found: dict[str, dict[str, object]]) -> None:
    """Two tables in Markdown: top-1 points lost, and the mean divergence from full precision's predictions."""
    widths = sorted({int(bits) for row in found.values() for bits in row["widths"]}, reverse=True)

    def table(cell: Callable[[list[float]], str]) -> None:
        print("| | " + " | ".join(map(str, widths)) + " | seconds |")
        print("|---|" + "---|" * (len(widths) + 1))
        for name, row in found.items():
            cells = [row["widths"].get(str(bits)) for bits in widths]
            texts = ["-" if values is None else cell(values) for values in cells]
            print(f"| {name} | " + " | ".join(texts) + f" | {row['seconds']:.0f} |")
        print()

    table(lambda values: f"{values[0]:.2f} ± {values[1]:.2f}")
    table(lambda values: f"{values[2]:.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--bits", default="2-8", help="widths of every row; empty leaves each recipe its own")
    parser.add_argument("--rows", nargs="*", help=f"which, of: {'; '.join(rows())}")
    parser.add_argument("--artifacts", type=Path, help="folder to keep the artifacts in, by the names of their rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    chosen = parser.parse_args()
    settings = {key: str(getattr(chosen, key)) for key in ("model", "calibration", "test", "bits", "seed")}
    stored = json.loads(chosen.output.read_text()) if chosen.output.exists() else {"settings": settings, "rows": {}}
    if stored["settings"] != settings:
        raise SystemExit(f"{chosen.output} is of other settings, {stored['settings']}; choose another --output.")
    for name, recipe in rows().items():
        if name in stored["rows"] or (chosen.rows and name not in chosen.rows):
            continue
        stored["rows"][name] = run(chosen, name, recipe)
        chosen.output.write_text(json.dumps(stored, indent=1) + "\n")
        print(name, stored["rows"][name], flush=True)
    show(stored["rows"])


if __name__ == "__main__":
    main()
