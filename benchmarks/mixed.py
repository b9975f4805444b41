"""Mixed plans beside uniform widths: what they cost in accuracy at budgets, and how well sensitivities tell it.

    python benchmarks/mixed.py --artifact DIR --data TEXT --test TEXT --output FOLDER
    python benchmarks/mixed.py --artifact DIR --data IMAGES --test IMAGES --output FOLDER

Budgets are bits per weight, scales and zero points included. At each, four plans: the least sum of sensitivities; with
what linears add to one another; the same with every linear free; and refined by measuring. All are judged on the test
data: a language model by its perplexity; a classifier of images by its top-1 error, with the standard error of how far
that is from full precision's, and by the divergence of its predictions, which for language is of `--data`. "Line" is
straight between the uniform widths on either side, at their own bits. The table of sensitivities, refined plans and
every plan's verdict stay in FOLDER and are not measured again; the results are `mixed.json` and `mixed.md`. The
gradient metric is timed and compared with the exact one on `--timed-samples` windows, or batches of 64 images.
`--raise-from 2` tells what linears that agree gain alone, at the next width beside all others at 2 bits, in shares of
what as many bits gain along the line.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

import quept
from quept.config import PrecisionPlan
from quept.data import digest, load_images, token_stream
from quept.errors import InvalidInput
from quept.evaluation import classifier, compare, perplexity
from quept.files import read_json, replacing, write_json
from quept.models import architecture_of
from quept.models.checkpoint import open_tokenizer, read_config
from quept.models.image_classification import IMAGES_PER_BATCH
from quept.models.images import open_image_processor
from quept.models.task import Choice
from quept.precision import at_precision, elastic_linears
from quept.search.allocation import Allocation, Constraints, Problem
from quept.search.budget import refined
from quept.search.cost import Costs
from quept.search.expansion import expand
from quept.search.measurement import measure_table
from quept.search.sensitivity import divergence_of, measure
from quept.search.table import Origin, SensitivityTable, model_digest, rank_correlation
from quept.search.target import rows_of, search_target
from quept.storage import DTYPES

PLANS = ["sum", "pairs", "pairs, free", "refined"]
IMAGES = 256  # to measure sensitivities on


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", required=True)
    parser.add_argument(
        "--data",
        required=True,
        help="text or images to measure sensitivities on, of which what the calibration saw is left out",
    )
    parser.add_argument("--test", required=True, help="text or images to judge plans on")
    parser.add_argument("--budgets", type=float, nargs="+", default=[2.25, 2.5, 3.0, 3.25, 4.0])
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=PLANS, help="which to make; default: all")
    parser.add_argument("--raise-from", type=int, help="width to raise linears from, one set after another")
    parser.add_argument("--samples", type=int, help=f"windows of --data (default: 16), or images ({IMAGES})")
    parser.add_argument("--timed-samples", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=4, help="of refining; default: %(default)s")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--test-tokens", type=int, default=300 * 256, help="default: %(default)s")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


@dataclass(frozen=True)
class Verdict:
    """What a plan costs on the test data, lower is better; where they are known, the standard error of how far that is
    from full precision's, and the mean divergence from full precision's predictions."""

    value: float
    error: float | None = None
    kl: float | None = None


class Judge(Protocol):
    """Tells what a model costs on test data at the precision that it is at."""

    name: str  # of the value
    amount: str  # of test data
    samples: Tensor  # of --data, as the model takes them
    unit: int  # samples in one of --timed-samples

    def verdict(self) -> Verdict:
        """Of the precision in force."""


class Reader:
    """Judges a language model by its perplexity."""

    name, unit = "perplexity", 1

    def __init__(self, model: Any, options: argparse.Namespace) -> None:
        self.model, self.length = model, options.sequence_length
        tokenizer = open_tokenizer(options.artifact)
        self.tokens = token_stream(options.test, tokenizer, max_tokens=options.test_tokens)
        self.amount = f"{len(self.tokens)} tokens"
        self.samples = unseen(
            model, options, tokenizer, {"samples": options.samples or 16, "sequence_length": self.length}
        )

    def verdict(self) -> Verdict:
        """Perplexity alone: divergences of so many logits would take twice as long again."""
        return Verdict(perplexity(self.model, self.tokens, sequence_length=self.length).value)


class Viewer:
    """Judges a classifier of images by its top-1 error, in per cent."""

    name, unit = "top-1 error", IMAGES_PER_BATCH

    def __init__(self, model: Any, options: argparse.Namespace) -> None:
        self.model = model
        processor = open_image_processor(options.artifact, read_config(options.artifact))
        self.batches = list(load_images(options.test, processor).batches(250))
        self.amount = f"{sum(len(pixels) for pixels, _ in self.batches)} images"
        self.samples = unseen(model, options, processor, {"samples": options.samples or IMAGES})
        with at_precision(model, None), torch.inference_mode():
            self.expected = [classifier(model)(pixels) for pixels, _ in self.batches]

    def verdict(self) -> Verdict:
        """The error, from the images that full precision gets right and this one does not, and the reverse."""
        expected = iter(self.expected)
        found = compare(lambda pixels: next(expected), classifier(self.model), self.batches)
        return Verdict(100 * (1 - found.accuracy.top1), 100 * found.lost_error, found.kl)


def unseen(model: Any, options: argparse.Namespace, processor: Any, amount: dict[str, int]) -> Tensor:
    """Samples of --data that the calibration was not made with: on those a model does better than on others."""
    manifest, task = model.quept_manifest, architecture_of(model.config.model_type).task

    def draw(seed: int, **data: int) -> Tensor:
        recipe = manifest.recipe.updated(data=manifest.recipe.data.updated(**data))
        return task.draw(options.data, processor, model.config, recipe, Choice(seed, note=print))

    try:
        seen = {sample.numpy().tobytes() for sample in draw(manifest.provenance.seed)}
    except InvalidInput:
        seen = set()  # too little for a calibration, so none was made with it
    drawn = draw(manifest.provenance.seed + 1, **{**amount, "samples": 2 * amount["samples"]})
    chosen = [sample for sample in drawn if sample.numpy().tobytes() not in seen][: amount["samples"]]
    if len(chosen) < amount["samples"]:
        raise SystemExit(f"The calibration was made with nearly all of {options.data}; give other --data.")
    return torch.stack(chosen)


class Bench:
    """One artifact, and what is measured of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = quept.load(options.artifact, dtype=torch.float32, integers=False, packed=False)
        self.manifest = self.model.quept_manifest
        architecture = architecture_of(self.manifest.architecture)
        self.judge: Judge = (Reader if architecture.task.per_token else Viewer)(self.model, options)
        self.target = search_target(self.model, self.judge.samples)
        self.costs = Costs.of(self.model, DTYPES[self.manifest.dtype])
        self.together = architecture.shared_input_groups(self.model)
        self.known = options.output / "verdicts.json"
        self.verdicts: dict[str, Any] = read_json(self.known, "verdicts") if self.known.exists() else {}
        self.found = options.output / "refined.json"
        self.plans: dict[str, Any] = read_json(self.found, "plans") if self.found.exists() else {}

    def table(self) -> SensitivityTable:
        origin = Origin(
            metric="kl",
            model=model_digest(self.manifest),
            data=Path(self.options.data).name,
            data_sha256=digest(self.judge.samples),
            rows=rows_of(self.model, self.judge.samples),
        )
        return measure_table(self.target, origin, self.options.output / "sensitivity.json")

    def verdict(self, plan: PrecisionPlan | None) -> Verdict:
        key = f"{self.judge.amount}: {json.dumps(None if plan is None else plan.to_json()['bits'])}"
        if key not in self.verdicts:
            with at_precision(self.model, None), at_precision(self.model, plan):
                self.verdicts[key] = asdict(self.judge.verdict())
            write_json(self.known, self.verdicts)
        return Verdict(**self.verdicts[key])

    def refined(self, problem: Problem, limit: int) -> Allocation:
        """The refined plan for a limit."""
        key = f"{limit}, {self.options.rounds} rounds"
        if key not in self.plans:
            found = refined(self.target, problem, limit, self.options.rounds)[-1].allocation
            self.plans[key] = found.plan.to_json()
            write_json(self.found, self.plans)
        return problem.allocation(PrecisionPlan.parse(self.plans[key], origin=str(self.found)))

    def raised(self, base: int) -> list[dict[str, Any]]:
        """What each set of linears that agree gains alone at the next width, beside all others at `base`."""
        layers = elastic_linears(self.model)
        following = min(bits for bits in self.manifest.recipe.bits if bits > base)
        low, high = (divergence_of(self.target, PrecisionPlan.uniform(layers, bits)) for bits in (base, following))
        found = []
        for paths in self.together:
            plan = PrecisionPlan({**dict.fromkeys(layers, base), **dict.fromkeys(paths, following)})
            share = sum(layers[path].numel for path in paths) / sum(layer.numel for layer in layers.values())
            gain = low - divergence_of(self.target, plan)
            found.append({"linears": ", ".join(paths), "share": share, "gain": gain / (share * (low - high))})
        return found

    def gradient(self) -> dict[str, float]:
        """The gradient metric's share of the exact one's time, and their rank correlation, on the same windows."""
        target = search_target(self.model, self.judge.samples[: self.options.timed_samples * self.judge.unit])
        origin = Origin(metric="kl", model="0" * 64, data="", data_sha256="0" * 64, rows=1)
        start = time.perf_counter()
        exact = SensitivityTable(origin=origin, parts=measure(target))
        middle = time.perf_counter()
        gradient = SensitivityTable(origin=origin, parts=expand(target).errors())
        end = time.perf_counter()
        return {
            "exact_seconds": middle - start,
            "gradient_seconds": end - middle,
            "share": (end - middle) / (middle - start),
            "rank_correlation": rank_correlation(gradient, exact),
        }

    def row(self, name: str, allocation: Allocation) -> dict[str, Any]:
        plan, verdict = allocation.plan, self.verdict(allocation.plan)
        return {
            "name": name,
            "bits": allocation.average_bits,
            "bytes": allocation.bytes,
            "expected_kl": allocation.expected,
            "value": verdict.value,
            "error": verdict.error,
            "kl": divergence_of(self.target, plan) if verdict.kl is None else verdict.kl,
            "plan": plan.to_json()["bits"],
        }


def line(uniform: Sequence[dict[str, Any]], bits: float, figure: str) -> float | None:
    """A figure between the uniform widths on either side; None outside."""
    for low, high in pairwise(uniform):
        if low["bits"] <= bits <= high["bits"]:
            share = (bits - low["bits"]) / (high["bits"] - low["bits"])
            return low[figure] + share * (high[figure] - low[figure])
    return None


def main() -> None:
    options = arguments()
    options.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    table = bench.table()
    agreeing, freely = Constraints(together=bench.together), Constraints()
    problems = {
        "sum": Problem(table, bench.costs, agreeing, pairs=False),
        "pairs": Problem(table, bench.costs, agreeing),
        "pairs, free": Problem(table, bench.costs, freely),
    }
    main_problem = problems["pairs"]
    uniform = [bench.row(f"{each.mean_bits:g}", each) for each in main_problem.uniform_plans()]
    for each, alone in zip(uniform, problems["sum"].uniform_plans(), strict=True):
        each["summed_kl"] = alone.expected
    names = {f"{each['bits']:.3f} (uniform {each['name']})": each["bits"] for each in uniform if each["name"] in "34"}
    rows = []
    for label, bits in [*((f"{bits:g}", bits) for bits in options.budgets), *names.items()]:
        limit = int(bits * main_problem.units + 1e-6)
        if limit < main_problem.least:
            continue  # below the lowest width
        found = {
            name: bench.row(
                name, problems[name].within(limit) if name in problems else bench.refined(main_problem, limit)
            )
            for name in options.plans
        }
        lines = {figure: line(uniform, bits, figure) for figure in ("value", "kl")}
        rows.append({"budget": label, "line": lines, "plans": found})
        print(label, {name: round(each["value"], 4) for name, each in found.items()}, flush=True)
    result = {
        "metric": bench.judge.name,
        "test": bench.judge.amount,
        "full_precision": asdict(bench.verdict(None)),
        "uniform": uniform,
        "rows": rows,
        "raised": bench.raised(options.raise_from) if options.raise_from else [],
        "gradient": bench.gradient(),
    }
    write_json(options.output / "mixed.json", result)
    with replacing(options.output / "mixed.md") as temporary:
        temporary.write_text(written(result), encoding="utf-8")
    print((options.output / "mixed.md").read_text())


def written(result: dict[str, Any]) -> str:
    """The results as Markdown."""

    def value(each: dict[str, Any]) -> str:
        return f"{each['value']:.3f}" if each["error"] is None else f"{each['value']:.2f} ± {each['error']:.2f}"

    lines = [
        f"{result['metric']} on {result['test']}; full precision {result['full_precision']['value']:.3f}",
        "",
        f"| uniform | bits | MB | KL, summed | with pairs | measured | {result['metric']} |",
        "|---" * 7 + "|",
    ]
    for each in result["uniform"]:
        lines.append(
            f"| {each['name']} | {each['bits']:.3f} | {each['bytes'] / 1e6:.2f} | {each['summed_kl']:.3g} | "
            f"{each['expected_kl']:.3g} | {each['kl']:.3g} | {value(each)} |"
        )
    kinds = list(result["rows"][0]["plans"])
    digits = ".3f" if result["full_precision"]["error"] is None else ".2f"
    for figure, name, form in (("value", result["metric"], digits), ("kl", "KL", ".3g")):
        lines += ["", f"| {name} at | line | {' | '.join(kinds)} |", "|---" * (2 + len(kinds)) + "|"]
        for row in result["rows"]:
            found = row["plans"].values()
            cells = [value(each) if figure == "value" else f"{each['kl']:.3g}" for each in found]
            straight = "" if row["line"][figure] is None else format(row["line"][figure], form)
            lines.append(f"| {row['budget']} | {straight} | {' | '.join(cells)} |")
    if result["raised"]:
        lines += ["", "| raised alone | share of weights | gain by the line's |", "|---" * 3 + "|"]
        lines += [f"| {each['linears']} | {each['share']:.3f} | {each['gain']:.2f} |" for each in result["raised"]]
    gradient = result["gradient"]
    lines += [
        "",
        f"Gradient metric: {gradient['share']:.3f} of the exact one's time, rank correlation "
        f"{gradient['rank_correlation']:.4f}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
