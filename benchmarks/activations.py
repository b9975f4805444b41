"""Weights and activations rounded together: full precision, rounding, rotation, and the recipes, at every precision.

    python benchmarks/activations.py --model DIR --data TEXT --test TEXT --output FOLDER

Measures perplexity and the KL divergence to full precision. `rounding` rounds weights per output channel and
activations per token, to nearest; `rotation` rotates first. Recipes are calibrated by `quept.calibrate`, one run for
all precisions. Artifacts stay in FOLDER and are not made again; the results are `activations.json` and `.md`.
"""

import argparse
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import quept
from quept.assembly import make_elastic
from quept.config import FULL, Precision, parse_precisions
from quept.data import token_stream
from quept.evaluation import divergence, perplexity
from quept.files import replacing
from quept.models import open_model
from quept.models.checkpoint import open_tokenizer
from quept.precision import at_precision, rounded_to_nearest

RECIPES = ("weight-activation", "weight-activation-best")
PRECISIONS = "w4a4,w5a5,w6a6,w7a7,w8a8,w4a4kv4,w4a8,w8a8kv8,kv2,kv3,kv4,kv8"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face model directory")
    parser.add_argument("--data", required=True, help="calibration text")
    parser.add_argument("--test", required=True, help="text to measure perplexity on")
    parser.add_argument("--precisions", default=PRECISIONS, help="default: %(default)s")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="names or files; default: the shipped two")
    parser.add_argument("--samples", type=int, help="windows to calibrate on; default: the recipe's")
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens per window of the measurement")
    parser.add_argument("--test-tokens", type=int, default=300 * 256, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


class Bench:
    """One model's reference, and what is measured against it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.reference = open_model(options.model, torch.float32)
        self.tokens = token_stream(options.test, open_tokenizer(options.model), max_tokens=options.test_tokens)

    def measure(self, model: Any) -> dict[str, float]:
        """Perplexity, and KL divergence to full precision."""
        length = self.options.sequence_length
        found = divergence(
            lambda ids: self.reference(ids, use_cache=False).logits,
            lambda ids: model(ids, use_cache=False).logits,
            self.tokens,
            sequence_length=length,
        )
        return {"perplexity": perplexity(model, self.tokens, sequence_length=length).value, "kl": found.kl}

    def plain(self) -> Any:
        """The model as it came, able to round."""
        model = open_model(self.options.model, torch.float32)
        recipe = quept.load_recipe("weight-activation")
        make_elastic(model, recipe.updated(adapter={"kind": "none"}, rotation={"enabled": False}))
        return model

    def artifact(self, recipe: str) -> tuple[Any, float | None]:
        """The model calibrated by a recipe, from an earlier run if there is one, and the seconds that it took."""
        directory = self.options.output / Path(recipe).stem
        seconds = None
        if not directory.exists():
            report = quept.calibrate(
                self.options.model,
                directory,
                data=self.options.data,
                recipe=recipe,
                samples=self.options.samples,
                seed=self.options.seed,
                resume=directory.with_name(f"{directory.name}.partial").exists(),
            )
            seconds = report.total_seconds
        return quept.load(directory, dtype=torch.float32, packed=False), seconds


@contextmanager
def calibrated(model: Any, widths: Precision) -> Iterator[None]:
    """As it was calibrated, all else at full precision."""
    with at_precision(model, None), at_precision(model, widths):
        yield


def available(model: Any, widths: Precision) -> bool:
    """Whether the artifact has these widths."""
    try:
        with at_precision(model, widths):
            return True
    except quept.InvalidInput:
        return False


def markdown(found: dict[str, Any]) -> str:
    """A table of perplexities and one of KL divergences."""
    methods = found["results"]
    precisions = list(dict.fromkeys(precision for results in methods.values() for precision in results))
    lines = [f"Full precision: {found['full_precision']:.4f}\n"]
    for measure, digits in (("perplexity", 4), ("kl", 6)):
        lines += [f"| {measure} | {' | '.join(methods)} |", f"|---|{'---|' * len(methods)}"]
        for precision in precisions:
            cells = [
                f"{results[precision][measure]:.{digits}f}" if precision in results else "-"
                for results in methods.values()
            ]
            lines.append(f"| {precision} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    options = arguments()
    console = Console(highlight=False)
    options.output.mkdir(parents=True, exist_ok=True)
    bench, precisions = Bench(options), parse_precisions(options.precisions)
    full_precision = bench.measure(bench.reference)
    found: dict[str, Any] = {
        "settings": {name: str(value) for name, value in vars(options).items()},
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "full_precision": full_precision["perplexity"],
        "seconds": {},
        "results": {},
    }

    def keep(method: str, results: dict[str, Any]) -> None:
        found["results"][method] = results
        with replacing(options.output / "activations.json") as temporary:
            temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

    def rounding(model: Any) -> dict[str, Any]:
        results = {}
        for widths in precisions:
            if widths.weights not in (None, FULL):
                with rounded_to_nearest(model, widths):
                    results[str(widths)] = bench.measure(model)
        return results

    keep("rounding", rounding(bench.plain()))
    for recipe in options.recipes:
        console.print(f"calibrating with {recipe}")
        model, seconds = bench.artifact(recipe)
        if "rotation" not in found["results"]:
            keep("rotation", rounding(model))
        found["seconds"][recipe] = seconds
        results = {}
        for widths in precisions:
            if available(model, widths):
                with calibrated(model, widths):
                    results[str(widths)] = bench.measure(model)
        keep(recipe, results)
    (options.output / "activations.md").write_text(markdown(found), encoding="utf-8")
    console.print(markdown(found))


if __name__ == "__main__":
    main()
