"""Tables of `quept evaluate`, one for each kind of result."""

from functools import singledispatch

from rich.console import Console

from quept.cli.console import figure, show_table, size
from quept.evaluation import AccuracyEvaluation, Comparison, Evaluation, PrecisionResult


@singledispatch
def show(evaluation: object, title: str, console: Console) -> None:
    """Print an evaluation; `title` names the model."""
    raise NotImplementedError(type(evaluation).__name__)


@show.register
def _perplexities(evaluation: Evaluation, title: str, console: Console) -> None:
    compared = evaluation.original is not None

    def row(name: str, each: PrecisionResult) -> tuple[str, ...]:
        divergences = tuple("-" if kl is None else f"{kl:.2g}" for kl in (each.kl, each.baseline_kl))
        return name, figure(each.perplexity), figure(each.baseline), *divergences[: 2 * compared], size(each.bytes)

    before = size(evaluation.full_precision_bytes)
    first: tuple[str, ...]
    if compared:
        first = ("original", figure(evaluation.original), "-", "0", "-", before)
    else:
        first = (_reference(evaluation), figure(evaluation.full_precision), "-", _full_size(evaluation))
    heading = f"Perplexity of {title} on {evaluation.tokens:,} tokens, windows of {evaluation.sequence_length}"
    columns = ["bits", "quept", "rounding", *(["KL quept", "KL rounding"] if compared else []), "packed size"]
    show_table(console, heading, columns, [first, *(row(each.precision, each) for each in evaluation.results)])
    if compared:
        console.print("KL: how far predictions are from the original model's, in nats per token; 0 is the same.")
    if evaluation.reference != "full precision":
        console.print(
            f"The {evaluation.reference} is what the artifact stores of each weight, rounded to nearest; all other "
            f"bit-widths are made from it. Before it was calibrated the model took {before}."
        )


@show.register
def _accuracies(evaluation: AccuracyEvaluation, title: str, console: Console) -> None:
    full = evaluation.full_precision
    error = f"{100 * full.top1:.2f} ± {100 * full.top1_error:.2f}"
    with_rounding = any(result.baseline is not None for result in evaluation.results)
    rows = [
        (_reference(evaluation), error, f"{100 * full.top5:.2f}", "-", *["-"] * with_rounding, _full_size(evaluation))
    ]
    for result in evaluation.results:
        own = result.calibrated
        cells = ["-", "-", "-"]
        if own is not None:
            cells = [f"{100 * own.accuracy.top1:.2f}", f"{100 * own.accuracy.top5:.2f}", _lost(own)]
        baseline = [_lost(result.baseline)] if with_rounding else []
        rows.append((result.precision, *cells, *baseline, size(result.bytes)))
    heading = f"Accuracy of {title} on {evaluation.images:,} images, in percent"
    columns = ("bits", "top-1", "top-5", "lost", *(["rounding lost"] * with_rounding), "packed size")
    show_table(console, heading, columns, rows)


def _reference(evaluation: Evaluation | AccuracyEvaluation) -> str:
    """Return the name of the row without a bit-width."""
    return "full" if evaluation.reference == "full precision" else evaluation.reference


def _full_size(evaluation: Evaluation | AccuracyEvaluation) -> str:
    """Return the model's size before it was calibrated; it says so where the row is of something else."""
    before = size(evaluation.full_precision_bytes)
    return before if evaluation.reference == "full precision" else f"{before} before"


def _lost(of: Comparison | None) -> str:
    """Return points lost to full precision, with the standard error of the paired difference."""
    return "-" if of is None else f"{100 * of.lost:.2f} ± {100 * of.lost_error:.2f}"
