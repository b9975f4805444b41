"""Calibrated bit-widths beside plain rounding, on test data: is anything worse than not calibrating at all?

    python benchmarks/gains.py MODEL --data FILE --test FILE --recipe best vision-best --seeds 0 1

calibrates a model with each recipe and seed, and prints the KL divergence of the predictions from full precision's at
every bit-width, divided by that of plain rounding of the original model. At most 1 is the promise: what is not better
on held-out samples is not kept. It also prints the share of the time that judging takes.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import quept
from quept.evaluation import AccuracyEvaluation, Evaluation
from quept.evaluation.judges import DataOptions
from quept.models import architecture_of
from quept.models.checkpoint import read_config


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True, help="text or images to calibrate on")
    parser.add_argument("--test", required=True, help="text or images to compare on")
    parser.add_argument("--recipe", nargs="+", default=["best"], help="recipes")
    parser.add_argument("--bits", default="2-8", help="bit-widths, as far as a recipe has them")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--samples", type=int, help="default: the recipe's")
    parser.add_argument("--sequence-length", type=int, help="tokens per window, for texts")
    parser.add_argument("--max-tokens", type=int, help="of the test, for texts")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of reconstruction, as JSON")
    parser.add_argument("--json", type=Path, help="write the ratios there")
    return parser.parse_args()


def ratios(found: Evaluation | AccuracyEvaluation) -> dict[str, float]:
    """Return the KL divergence at each precision, as a share of rounding's."""
    if isinstance(found, AccuracyEvaluation):
        pairs = {each.precision: (each.calibrated, each.baseline) for each in found.results}
        return {name: one.kl / two.kl for name, (one, two) in pairs.items() if one and two}
    return {each.precision: each.kl / each.baseline_kl for each in found.results if each.kl and each.baseline_kl}


def measure(arguments: argparse.Namespace, recipe: Any, seed: int, folder: Path) -> dict[str, Any]:
    """Calibrate once, and compare."""
    options = {"samples": arguments.samples, "sequence_length": arguments.sequence_length}
    report = quept.calibrate(arguments.model, folder, data=arguments.data, recipe=recipe, seed=seed, **options)
    text = architecture_of(read_config(arguments.model).model_type).task.per_token
    amount = DataOptions(sequence_length=arguments.sequence_length, max_tokens=arguments.max_tokens)
    found = quept.evaluate(
        folder,
        arguments.test,
        baseline=True,
        original=arguments.model if text else None,
        options=amount if text else DataOptions(),
    )
    judging = report.seconds.get("judging", 0.0) / report.total_seconds
    return {"recipe": recipe.name, "seed": seed, "ratios": ratios(found), "judging": judging}


def main() -> None:
    arguments = parse_arguments()
    bits = quept.config.parse_bits(arguments.bits)
    changes = {name: json.loads(value) for name, _, value in (each.partition("=") for each in arguments.set)}
    rows = []
    for name in arguments.recipe:
        recipe = quept.load_recipe(name).with_bits(bits)
        recipe = recipe.updated(reconstruction=recipe.reconstruction.updated(**changes))
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(arguments, recipe, seed, Path(folder) / "artifact")
            rows.append(row)
            shown = "  ".join(f"{precision} {ratio:.3f}" for precision, ratio in row["ratios"].items())
            print(f"{name}, seed {seed}:  {shown}  (judging {row['judging']:.1%} of the time)", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
