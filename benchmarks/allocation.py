"""Seconds that exact allocation takes: 300 layers at 7 widths, with errors of several kinds.

    python benchmarks/allocation.py

`model`: errors fall fourfold a bit, and layers matter differently (log-normal). `random`: errors know nothing of
widths. `near ties`: every layer gains the same per bit, up to the given share; no bound can tell choices apart then,
and where they are too many the result is not exact: "excess" is by how much at most, as a share of all that can be
gained.
"""

import argparse
import time

import numpy as np

from quept.search.knapsack import Option, choose

SHAPES = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]  # of LLaMA's linears at 7B
KINDS = {
    "model": None,
    "random": None,
    "near ties, 10 %": 0.1,
    "near ties, 1 %": 0.01,
    "near ties, 0.1 %": 0.001,
    "ties": 0.0,
}


def items(kind: str, layers: int) -> list[list[Option]]:
    generator = np.random.default_rng(0)
    found = []
    for index in range(layers):
        rows, columns = SHAPES[index % len(SHAPES)]
        importance = np.exp(generator.normal(0, 2))
        options = []
        for bits in range(2, 9):
            scales = rows * (columns // 128) if bits < 5 else rows
            cost = (rows * columns + scales) * bits + scales * 16
            error = importance * 4.0**-bits * np.exp(generator.normal(0, 0.1))
            if kind == "random":
                error = generator.random()
            if (share := KINDS[kind]) is not None:
                error = -cost * (1 + share * generator.random())
            options.append(Option(cost, float(error)))
        found.append(options)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=300)
    layers = parser.parse_args().layers
    print("| errors | seconds, least and most over four budgets | excess, most |\n|---|---|---|")
    for kind in KINDS:
        problem = items(kind, layers)
        low, high = (sum(end(option.cost for option in options) for options in problem) for end in (min, max))
        seconds, excess = [], 0.0
        gains = sum(
            max(option.error for option in options) - min(option.error for option in options) for options in problem
        )
        for share in (0.05, 0.2, 0.45, 0.8):
            start = time.perf_counter()
            choice = choose(problem, int(low + share * (high - low)))
            seconds.append(time.perf_counter() - start)
            excess = max(excess, choice.excess / gains)
        print(f"| {kind} | {min(seconds):.2f} to {max(seconds):.2f} | {excess:.1e} |", flush=True)


if __name__ == "__main__":
    main()
