"""The paper's ablations: one setting of the recipe `paper` changed at a time, at every width; or of `best`.

    python benchmarks/ablations.py --model DIR --data TEXT --test TEXT --output FOLDER
    python benchmarks/ablations.py ... --other-data TEXT --only merging "rank per group"
    python benchmarks/ablations.py ... --study best

Writes `ablations.json` after every variant, and goes on from it when started again; at the end `ablations.md`, a table
per ablation, and `ablations.png`, a panel per ablation. Each variant is one calibration by `quept.calibrate`.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ideas import IDEAS
from rich.console import Console

import quept
from quept.calibration.methods.learned_rounding import TRAVEL
from quept.calibration.reconstruct import count_steps
from quept.config import Mixing, Recipe
from quept.data import token_stream
from quept.evaluation import evaluate_precisions
from quept.files import replacing
from quept.models.checkpoint import open_tokenizer


@dataclass(frozen=True)
class Variant:
    """One calibration: changes to sections of the recipe, to its groups, and to the text and the samples."""

    ablation: str
    label: str
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: list[list[int]] | None = None
    learned_rounding: tuple[int, ...] | None = None
    data: str | None = None
    samples: int | None = None
    idea: str | None = None
    seed: int | None = None

    def seed_or(self, usual: int) -> int:
        """Its own seed, if it has one."""
        return usual if self.seed is None else self.seed

    def recipe(self, base: Recipe) -> Recipe:
        """The base recipe with these changes."""
        changes: dict[str, Any] = {
            name: getattr(base, name).updated(**values) for name, values in self.sections.items()
        }
        if self.groups:
            changes["groups"] = {"groups": self.groups}
        if self.learned_rounding is not None:
            changes["learned_rounding"] = self.learned_rounding
        if self.samples:
            # As many steps as the base makes, so that only the variety of the text changes.
            epochs = max(1, round(base.reconstruction.epochs * base.data.samples / self.samples))
            changes["data"] = base.data.updated(samples=self.samples)
            changes["reconstruction"] = base.reconstruction.updated(epochs=epochs)
        return base.updated(**changes)


def variants(base: Recipe, other_data: list[str]) -> Iterator[Variant]:
    """All of them; each ablation starts with what the paper does."""
    for strategy in ("selective", "uniform", "random", "single-width", "per-group"):
        width = {"single_width": 8} if strategy == "single-width" else {}
        yield Variant("merging", f"{strategy}{' (8)' if width else ''}", {"merging": {"strategy": strategy, **width}})
    for kind in ("cascade", "independent", "shared", "none"):
        yield Variant("adapter kind", kind, {"adapter": {"kind": kind}})
    yield Variant("adapter kind", "cascade, isolated", {"adapter": {"isolated": True}})
    for entry in ("weight", "scale", "rounding"):
        yield Variant("adapter entry", entry, {"adapter": {"entry": entry}})
    for rank in (16, 4, 8, 32):
        yield Variant("rank per group", str(rank), {"adapter": {"rank": rank}})
    for groups in (
        [[7, 8], [5, 6], [3, 4], [2]],
        [[2, 3, 4, 5, 6, 7, 8]],
        [[6, 7, 8], [4, 5], [2, 3]],
        [[7, 8], [5, 6], [4], [3], [2]],
        [[8], [7], [6], [5], [4], [3], [2]],
    ):
        yield Variant("bit groups", " ".join("".join(map(str, group)) for group in groups), groups=groups)
    for kept in (0.5, 0.0, 0.25, 0.75, 1.0):
        yield Variant("tokens kept (top-p)", f"{kept:.0%}", {"merging": {"kept": kept}})
    for weights in ((0.25, 0.25, 0.25, 0.25), (0.4, 0.3, 0.2, 0.1), (0.1, 0.2, 0.3, 0.4)):
        yield Variant("fusion weights, high to low", " ".join(map(str, weights)), {"merging": {"weights": weights}})
    yield Variant("calibration text", "the model's own")
    for text in other_data:
        yield Variant("calibration text", Path(text).stem, data=text)
    for share in (1, 2, 4, 8):
        yield Variant(
            "samples, same number of steps", str(base.data.samples // share), samples=base.data.samples // share
        )


def parts_of_best(base: Recipe, other_data: list[str]) -> Iterator[Variant]:
    """What each part of `best` gives, and ideas that it does without."""

    def training(label: str, **changes: Any) -> Variant:
        return Variant("training", label, {"reconstruction": changes})

    steps = count_steps(base.data.samples, base.reconstruction)
    twice, thrice = ({"rounding_learning_rate": factor * TRAVEL / steps} for factor in (2, 3))
    yield training("best")
    yield training("no prediction loss at the last block", last_block_loss=None, label_weight=0.0)
    yield training("no share of the text", label_weight=0.0)
    yield training("ten times the share of the text", label_weight=0.05)
    yield training("ranges start at sigmoid(4)", clip_init=4.0)
    yield training("clipping rate 5e-2", clipping_learning_rate=5e-2)
    yield training("clipping rate 5e-3", clipping_learning_rate=5e-3)
    yield training("mean absolute error", loss="mae")
    yield training("products in bfloat16 at 8 bits as well", bfloat16_bits=(2, 3, 4, 5, 6, 8))
    yield training("no bit-widths mixed", mixing=Mixing())
    yield training("bit-widths mixed in all blocks", mixing=base.reconstruction.mixing.updated(start=0.0))
    yield training("twice the rounding rate", **twice)
    yield training("three times the rounding rate", **thrice)
    yield Variant("parts", "best")
    yield Variant("parts", "no learned rounding", learned_rounding=())
    yield Variant("parts", "no adapters", {"adapter": {"kind": "none"}})
    yield Variant("parts", "adapters at all bit-widths", {"adapter": {"bits": ()}})
    yield Variant(
        "parts", "isolated cascade at all bit-widths", {"adapter": {"bits": (), "kind": "cascade", "isolated": True}}
    )
    yield Variant("parts", "one merged stream", {"merging": {"strategy": "selective"}})
    yield Variant("parts", "smoothing", {"smoothing": {"enabled": True}})
    yield Variant("ideas", "best")
    for idea in IDEAS:
        yield Variant("ideas", idea, idea=idea)
    yield Variant("ideas", "free weights, three times the rate", {"reconstruction": thrice}, idea="free weights")
    for seed in range(3):
        yield Variant("seed", str(seed), seed=seed)
    for text in other_data:
        for share in (0.0, base.reconstruction.label_weight, 0.05):
            label = f"{Path(text).stem}, {share:.1%} of it in the predictions"
            yield Variant("calibration text", label, {"reconstruction": {"label_weight": share}}, data=text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face model directory")
    parser.add_argument("--data", required=True, help="calibration text")
    parser.add_argument("--test", required=True, help="text to measure perplexity on")
    parser.add_argument("--other-data", nargs="*", default=[], help="texts to calibrate on instead")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--epochs", type=int, help="default: 4 for `paper`, what the recipe says for `best`")
    parser.add_argument("--test-tokens", type=int, default=16384)
    parser.add_argument("--study", choices=("paper", "best"), default="paper")
    parser.add_argument("--only", nargs="+", help="ablations to run, by name (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def measure(variant: Variant, base: Recipe, options: argparse.Namespace, tokens: torch.Tensor) -> dict[str, Any]:
    """Calibrate as the variant says; perplexity by width, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "artifact"
        recipe, data = variant.recipe(base), variant.data or options.data
        with IDEAS[variant.idea]() if variant.idea else nullcontext():
            report = quept.calibrate(
                options.model, output, data=data, recipe=recipe, seed=variant.seed_or(options.seed)
            )
            model = quept.load(output, dtype=torch.float32, packed=False)
            evaluation = evaluate_precisions(model, tokens, recipe.bits, sequence_length=options.sequence_length)
    return {
        "full_precision": evaluation.full_precision,
        "perplexity": {result.precision: result.perplexity for result in evaluation.results},
        "seconds": report.total_seconds,
    }


def main() -> None:
    options = arguments()
    console = Console(highlight=False)
    shipped = quept.load_recipe(options.study)
    epochs = options.epochs or (4 if options.study == "paper" else shipped.reconstruction.epochs)
    base = shipped.updated(
        data=shipped.data.updated(samples=options.samples, sequence_length=options.sequence_length),
        reconstruction=shipped.reconstruction.updated(epochs=epochs),
    )
    of_study = variants if options.study == "paper" else parts_of_best
    tokens = token_stream(options.test, open_tokenizer(options.model), max_tokens=options.test_tokens)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "ablations.json"
    settings = {
        name: getattr(options, name)
        for name in ("model", "data", "test", "samples", "sequence_length", "epochs", "test_tokens", "seed", "study")
    }
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"settings": settings, "results": {}}
    if found["settings"] != settings:
        raise SystemExit(f"{path} is of other settings, {found['settings']}; choose another --output.")
    offered = list(of_study(base, options.other_data))
    if unknown := set(options.only or ()) - {variant.ablation for variant in offered}:
        names = ", ".join(dict.fromkeys(repr(variant.ablation) for variant in offered))
        raise SystemExit(f"There is no ablation {', '.join(map(repr, sorted(unknown)))}; choose of {names}.")
    chosen = [variant for variant in offered if not options.only or variant.ablation in options.only]
    for number, variant in enumerate(chosen, 1):
        results = found["results"].setdefault(variant.ablation, {})
        if variant.label in results:
            continue
        console.print(f"{number} of {len(chosen)}: {variant.ablation}, {variant.label}")
        results[variant.label] = same(found, variant, base, options) or measure(variant, base, options, tokens)
        found.setdefault("recipes", {}).setdefault(variant.ablation, {})[variant.label] = key(variant, base, options)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (options.output / "ablations.md").write_text(markdown(found["results"]), encoding="utf-8")
    plot(found["results"], options.output / "ablations.png")
    console.print(markdown(found["results"]))


def key(variant: Variant, base: Recipe, options: argparse.Namespace) -> str:
    """What decides the result, so that no calibration is made twice."""
    recipe = variant.recipe(base).model_dump(mode="json")
    settings = [recipe, variant.data or options.data, variant.idea, variant.seed_or(options.seed)]
    return json.dumps(settings, sort_keys=True)


def same(found: dict[str, Any], variant: Variant, base: Recipe, options: argparse.Namespace) -> Any:
    """The result of an earlier variant with these very settings, if there is one."""
    for ablation, recipes in found.get("recipes", {}).items():
        for label, settings in recipes.items():
            if settings == key(variant, base, options):
                return found["results"][ablation][label]
    return None


def markdown(results: dict[str, Any]) -> str:
    """A table per ablation; the least perplexity of each width in bold."""
    parts = []
    for ablation, rows in results.items():
        bits = sorted({int(width) for row in rows.values() for width in row["perplexity"]})
        best = {b: min(row["perplexity"][str(b)] for row in rows.values()) for b in bits}
        lines = [f"| {ablation} | " + " | ".join(map(str, bits)) + " |", "|---|" + "---|" * len(bits)]
        for label, row in rows.items():
            values = [(b, row["perplexity"][str(b)]) for b in bits]
            cells = [f"**{value:.3f}**" if value == best[b] else f"{value:.3f}" for b, value in values]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def plot(results: dict[str, Any], path: Path) -> None:
    """A panel per ablation: perplexity above full precision, by width."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 3
    rows = -(-len(results) // columns)
    figure, panels = pyplot.subplots(
        rows, columns, figsize=(5 * columns, 3.6 * rows), squeeze=False, layout="constrained"
    )
    for panel, (ablation, lines) in zip(panels.flat, results.items(), strict=False):
        for label, row in lines.items():
            excess = {int(b): value / row["full_precision"] - 1 for b, value in row["perplexity"].items()}
            panel.plot(list(excess), [100 * value for value in excess.values()], marker="o", markersize=3, label=label)
        panel.set(title=ablation, yscale="symlog", xlabel="bits", ylabel="% above full precision")
        panel.set_xticks(sorted(excess))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    for panel in panels.flat[len(results) :]:
        panel.set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
