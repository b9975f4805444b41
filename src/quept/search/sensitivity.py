"""How much each part of a model matters, at each width: one part is quantized, the others stay as they are.

The exact measure runs the model for every part and width. What comes in front of the part's block is computed once
for all parts and widths of the block; the block and what is behind it run anew.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from quept.evaluation.divergence import total_kl
from quept.nn import ElasticLinear
from quept.plan import Widths
from quept.precision import Precision, at_precision
from quept.search.subject import Subject
from quept.widths import FULL

Errors = Mapping[str, Mapping[str, float]]  # by path and width
Progress = Callable[[str, int, int], None]  # what is measured, passes done and in total


@dataclass
class Measured:
    """What was found so far: divergences in nats, per row, by path and width, and that of the background."""

    background: float = 0.0
    parts: dict[str, dict[str, float]] = field(default_factory=dict)


def widths_of(part: nn.Module, keys_values: Sequence[int] = (), full: bool = False) -> list[Widths]:
    """The widths to measure a part at: a linear's calibrated ones, then those of its inputs alone, or `keys_values`.

    With `full`, a linear's full precision too.
    """
    if not isinstance(part, ElasticLinear):
        return [Widths(keys_values=bits) for bits in keys_values]
    inputs = () if part.input is None else part.input.spec.bits
    weights = [Widths(weights=bits) for bits in part.spec.groups.bits]
    return weights + [Widths.parse(f"a{bits}") for bits in inputs] + [Widths(FULL, FULL)] * full


def measure(
    subject: Subject,
    *,
    around: Precision = None,
    keys_values: Sequence[int] = (),
    before: Measured | None = None,
    save: Callable[[Measured], None] | None = None,
    progress: Progress | None = None,
) -> Measured:
    """The divergence from full precision of a model with one part at a time at each of its widths.

    Args:
        subject: the model and its inputs.
        around: the precision of all other parts; what is told is then the difference that the part makes.
        keys_values: widths to measure keys and values at, attention by attention.
        before: what an earlier run found; only what it lacks is measured.
        save: told what is there after every block.
        progress: told the block, passes done, and passes in total.

    Returns the divergences; they are the same whether or not a run was interrupted.
    """
    stages = [
        (
            index,
            {
                path: widths
                for path, part in parts.items()
                if (widths := widths_of(part, keys_values, around is not None))
            },
        )
        for index, parts in subject.parts()
    ]
    found = Measured() if before is None else before
    total = len(subject.inputs) * sum(len(each) for _, parts in stages for each in parts.values())
    done = 0
    for index, measured in stages:
        passes = len(subject.inputs) * sum(map(len, measured.values()))
        if not measured.keys() <= found.parts.keys():

            def step(count: int, done: int = done, label: str = _label(index, subject)) -> None:
                if progress is not None:
                    progress(label, done + count, total)

            found.background, errors = _measure_block(subject, index, measured, around, step)
            found.parts.update(errors)
            if save is not None:
                save(found)
        done += passes
    return found


def _measure_block(
    subject: Subject, index: int, parts: Mapping[str, Sequence[Widths]], around: Precision, step: Callable[[int], None]
) -> tuple[float, dict[str, dict[str, float]]]:
    """The background's divergence, and that of each part and width less the background's, per row."""
    sums = {path: {str(width): 0.0 for width in widths} for path, widths in parts.items()}
    rows, background, count = 0, 0.0, 0
    for batch in subject.inputs:
        with at_precision(subject.model, None):
            expected, hidden = subject.run(batch, index)
        rows += len(expected)
        with at_precision(subject.model, None), at_precision(subject.model, around):
            if around is not None:
                given, hidden = subject.run(batch, index)
                background += total_kl(expected, given)
            for path, widths in parts.items():
                for width in widths:
                    with at_precision(subject.model, {path: width}):
                        given = subject.run_from(index, hidden, batch)
                    sums[path][str(width)] += total_kl(expected, given)
                    count += 1
                    step(count)
    background /= rows
    errors = {path: {name: value / rows - background for name, value in each.items()} for path, each in sums.items()}
    return background, errors


def _label(index: int, subject: Subject) -> str:
    return f"block {index + 1}/{len(subject.blocks)}"
