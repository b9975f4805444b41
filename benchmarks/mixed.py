"""Mixed plans beside uniform widths: perplexity at budgets, and how well sensitivities tell it.

    python benchmarks/mixed.py --artifact DIR --data TEXT --test TEXT --output FOLDER

Budgets are bits per weight, scales and zero points included. At each, four plans: the least sum of sensitivities; with
what linears add to one another; the same with every linear free; and refined by measuring. "Line" is the
perplexity on the straight line between the uniform widths on either side, at their own bits. The table of
sensitivities, refined plans and every plan's perplexity stay in FOLDER and are not measured again; the results are
`mixed.json` and `mixed.md`. The gradient metric is timed and compared with the exact one on `--timed-samples` windows.
"""

import argparse
import json
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import quept
from quept.architectures import architecture_of
from quept.architectures.checkpoint import open_tokenizer
from quept.data import digest, token_stream, token_windows
from quept.evaluation import perplexity
from quept.files import read_json, replacing, write_json
from quept.plan import PrecisionPlan
from quept.precision import at_precision
from quept.search.allocation import Allocation, Constraints, Problem
from quept.search.budget import refined
from quept.search.cost import Costs
from quept.search.expansion import expand
from quept.search.measurement import measure_table
from quept.search.sensitivity import divergence_of, measure
from quept.search.subject import subject_of
from quept.search.table import Origin, SensitivityTable, model_digest, rank_correlation
from quept.storage import DTYPES


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", required=True)
    parser.add_argument("--data", required=True, help="text to measure sensitivities on")
    parser.add_argument("--test", required=True, help="text to measure perplexity on")
    parser.add_argument("--budgets", type=float, nargs="+", default=[2.25, 2.5, 3.0, 3.25, 4.0])
    parser.add_argument("--samples", type=int, default=16, help="windows of --data; default: %(default)s")
    parser.add_argument("--timed-samples", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=4, help="of refining; default: %(default)s")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--test-tokens", type=int, default=300 * 256, help="default: %(default)s")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


class Bench:
    """One artifact, and what is measured of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = quept.load(options.artifact, dtype=torch.float32, integers=False, packed=False)
        self.manifest = self.model.quept_manifest
        tokenizer = open_tokenizer(options.artifact)
        self.tokens = token_stream(options.test, tokenizer, max_tokens=options.test_tokens)
        self.windows = token_windows(
            options.data, tokenizer, samples=options.samples, sequence_length=options.sequence_length, seed=0
        )
        self.subject = subject_of(self.model, self.windows)
        self.costs = Costs.of(self.model, DTYPES[self.manifest.dtype])
        self.together = architecture_of(self.manifest.architecture).together(self.model)
        self.known = options.output / "perplexities.json"
        self.perplexities: dict[str, float] = read_json(self.known, "perplexities") if self.known.exists() else {}
        self.found = options.output / "refined.json"
        self.plans: dict[str, Any] = read_json(self.found, "plans") if self.found.exists() else {}

    def table(self) -> SensitivityTable:
        origin = Origin(
            metric="kl",
            model=model_digest(self.manifest),
            data=Path(self.options.data).name,
            data_sha256=digest(self.windows),
            rows=self.windows.numel(),
        )
        return measure_table(self.subject, origin, self.options.output / "sensitivity.json")

    def perplexity(self, plan: PrecisionPlan) -> float:
        key = f"{len(self.tokens)}: {json.dumps(plan.to_json()['bits'])}"
        if key not in self.perplexities:
            with at_precision(self.model, None), at_precision(self.model, plan):
                length = self.options.sequence_length
                self.perplexities[key] = perplexity(self.model, self.tokens, sequence_length=length).value
            write_json(self.known, self.perplexities)
        return self.perplexities[key]

    def refined(self, problem: Problem, limit: int) -> Allocation:
        """The refined plan for a limit."""
        key = f"{limit}, {self.options.rounds} rounds"
        if key not in self.plans:
            found = refined(self.subject, problem, limit, self.options.rounds)[-1].allocation
            self.plans[key] = found.plan.to_json()
            write_json(self.found, self.plans)
        return problem.allocation(PrecisionPlan.parse(self.plans[key], origin=str(self.found)))

    def gradient(self) -> dict[str, float]:
        """The gradient metric's share of the exact one's time, and their rank correlation, on the same windows."""
        subject = subject_of(self.model, self.windows[: self.options.timed_samples])
        origin = Origin(metric="kl", model="0" * 64, data="", data_sha256="0" * 64, rows=1)
        start = time.perf_counter()
        exact = SensitivityTable(origin=origin, parts=measure(subject))
        middle = time.perf_counter()
        gradient = SensitivityTable(origin=origin, parts=expand(subject).errors())
        end = time.perf_counter()
        return {
            "exact_seconds": middle - start,
            "gradient_seconds": end - middle,
            "share": (end - middle) / (middle - start),
            "rank_correlation": rank_correlation(gradient, exact),
        }

    def row(self, name: str, allocation: Allocation) -> dict[str, Any]:
        plan = allocation.plan
        return {
            "name": name,
            "bits": allocation.average_bits,
            "bytes": allocation.bytes,
            "expected_kl": allocation.expected,
            "kl": divergence_of(self.subject, plan),
            "perplexity": self.perplexity(plan),
            "plan": plan.to_json()["bits"],
        }


def line(uniform: Sequence[dict[str, Any]], bits: float) -> float | None:
    """The perplexity between the uniform widths on either side; None outside."""
    for low, high in pairwise(uniform):
        if low["bits"] <= bits <= high["bits"]:
            share = (bits - low["bits"]) / (high["bits"] - low["bits"])
            return low["perplexity"] + share * (high["perplexity"] - low["perplexity"])
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
    uniform = [bench.row(f"{each.mean_width:g}", each) for each in main_problem.uniform_plans()]
    for each, alone in zip(uniform, problems["sum"].uniform_plans(), strict=True):
        each["summed_kl"] = alone.expected
    names = {f"{each['bits']:.3f} (uniform {each['name']})": each["bits"] for each in uniform if each["name"] in "34"}
    rows = []
    for label, bits in [*((f"{bits:g}", bits) for bits in options.budgets), *names.items()]:
        limit = int(bits * main_problem.units + 1e-6)
        if limit < main_problem.least:
            continue  # below the lowest width
        found = {name: bench.row(name, problem.within(limit)) for name, problem in problems.items()}
        found["refined"] = bench.row("refined", bench.refined(main_problem, limit))
        rows.append({"budget": label, "line": line(uniform, bits), "plans": found})
        print(label, {name: round(each["perplexity"], 4) for name, each in found.items()}, flush=True)
    result = {"tokens": len(bench.tokens), "uniform": uniform, "rows": rows, "gradient": bench.gradient()}
    write_json(options.output / "mixed.json", result)
    with replacing(options.output / "mixed.md") as temporary:
        temporary.write_text(written(result), encoding="utf-8")
    print((options.output / "mixed.md").read_text())


def written(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| uniform | bits | MB | KL, summed | with pairs | measured | perplexity |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in result["uniform"]:
        lines.append(
            f"| {each['name']} | {each['bits']:.3f} | {each['bytes'] / 1e6:.2f} | "
            f"{each['summed_kl']:.3g} | {each['expected_kl']:.3g} | {each['kl']:.3g} | "
            f"{each['perplexity']:.3f} |"
        )
    kinds = list(result["rows"][0]["plans"])
    lines += ["", f"| budget | line | {' | '.join(kinds)} |", "|---" * (2 + len(kinds)) + "|"]
    for row in result["rows"]:
        cells = [f"{each['perplexity']:.3f}" for each in row["plans"].values()]
        above = "" if row["line"] is None else f"{row['line']:.3f}"
        lines.append(f"| {row['budget']} | {above} | {' | '.join(cells)} |")
    lines += ["", f"| budget | {' | '.join(f'KL, {kind}' for kind in kinds)} |", "|---" * (1 + len(kinds)) + "|"]
    for row in result["rows"]:
        cells = [f"{each['kl']:.3g}" for each in row["plans"].values()]
        lines.append(f"| {row['budget']} | {' | '.join(cells)} |")
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
