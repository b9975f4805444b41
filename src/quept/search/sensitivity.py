"""Sensitivity of each part of a model at each bit-width: one part is quantized, the others are at full precision.

The exact measure runs the model for every part and bit-width. What comes in front of the part's block is computed once
for all parts and bit-widths of the block; the block and what is behind it run anew.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from quept.config import Precision
from quept.layers import ElasticLinear
from quept.numerics.divergence import total_kl
from quept.precision import PrecisionLike, at_precision
from quept.search.target import SearchTarget

Errors = dict[str, dict[str, float]]  # in nats per row, by path and bit-width
Progress = Callable[[str, int, int], None]  # what is measured, passes done and in total


def choices_of(part: nn.Module, keys_values: Sequence[int] = ()) -> list[Precision]:
    """Return the precisions to measure a part at: a linear's bits, then those of its inputs alone, or `keys_values`."""
    if not isinstance(part, ElasticLinear):
        return [Precision(keys_values=bits) for bits in keys_values]
    inputs = () if part.input is None else part.input.spec.bits
    weights = [Precision(weights=bits) for bits in part.spec.groups.bits]
    return weights + [Precision.parse(f"a{bits}") for bits in inputs]


def measure(
    target: SearchTarget,
    *,
    keys_values: Sequence[int] = (),
    before: Errors | None = None,
    save: Callable[[Errors], None] | None = None,
    progress: Progress | None = None,
) -> Errors:
    """Measure the divergence from full precision of a model with one part at a time at each of its bit-widths.

    Args:
        subject: the model and its inputs.
        keys_values: bit-widths to measure keys and values at, attention by attention.
        before: what an earlier run found; only what it lacks is measured.
        save: told what is there after every block.
        progress: told the block, passes done, and passes in total.

    Returns the divergences; they are the same whether or not a run was interrupted.
    """
    stages = []
    for index, parts in target.parts():
        precisions = {path: choices_of(part, keys_values) for path, part in parts.items()}
        stages.append((index, {path: each for path, each in precisions.items() if each}))
    found: Errors = dict(before or {})
    total = len(target.inputs) * sum(len(each) for _, parts in stages for each in parts.values())
    done = 0
    for index, measured in stages:
        if not measured.keys() <= found.keys():

            def step(count: int, done: int = done, label: str = f"block {index + 1}/{len(target.blocks)}") -> None:
                if progress is not None:
                    progress(label, done + count, total)

            found.update(_measure_block(target, index, measured, step))
            if save is not None:
                save(found)
        done += len(target.inputs) * sum(map(len, measured.values()))
    return found


def _measure_block(
    target: SearchTarget, index: int, parts: Mapping[str, Sequence[Precision]], step: Callable[[int], None]
) -> Errors:
    """Return the divergence for each part and bit-width of a block, per row."""
    sums = {path: {str(precision): 0.0 for precision in precisions} for path, precisions in parts.items()}
    rows, count = 0, 0
    with at_precision(target.model, None):
        for batch in target.inputs:
            expected, hidden = target.run(batch, index)
            rows += len(expected)
            for path, precisions in parts.items():
                for precision in precisions:
                    with at_precision(target.model, {path: precision}):
                        given = target.run_from(index, hidden, batch)
                    sums[path][str(precision)] += total_kl(expected, given)
                    count += 1
                    step(count)
    return {path: {precision: value / rows for precision, value in each.items()} for path, each in sums.items()}


def divergence_of(target: SearchTarget, precision: PrecisionLike) -> float:
    """Return the divergence from full precision of a model at a precision, in nats per row."""
    rows, total = 0, 0.0
    for batch in target.inputs:
        with at_precision(target.model, None):
            expected, _ = target.run(batch, 0)
            with at_precision(target.model, precision):
                total += total_kl(expected, target.run(batch, 0)[0])
        rows += len(expected)
    return total / rows
