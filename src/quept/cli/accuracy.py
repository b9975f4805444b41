"""Image classifiers on the command line: the table and the plot of `quept evaluate`."""

from typing import TYPE_CHECKING

from rich.console import Console

from quept.cli.console import show_table, size

if TYPE_CHECKING:
    from quept.evaluation import AccuracyEvaluation, Comparison, Evaluation
    from quept.plots import Point


def reference(evaluation: "Evaluation | AccuracyEvaluation") -> str:
    """How the row without a width is called."""
    return "full" if evaluation.reference == "full precision" else evaluation.reference


def full_size(evaluation: "Evaluation | AccuracyEvaluation") -> str:
    """The model's size before it was calibrated, and that it is this one where the row is of something else."""
    before = size(evaluation.full_precision_bytes)
    return before if evaluation.reference == "full precision" else f"{before} before"


def show_accuracy(evaluation: "AccuracyEvaluation", title: str, console: Console) -> None:
    """The table for people: accuracies and points lost in percent, with standard errors."""
    full = evaluation.full_precision
    error = f"{100 * full.top1:.2f} ± {100 * full.top1_error:.2f}"
    with_rounding = any(result.baseline is not None for result in evaluation.results)
    rows = [
        (reference(evaluation), error, f"{100 * full.top5:.2f}", "-", *["-"] * with_rounding, full_size(evaluation))
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


def error_points(evaluation: "AccuracyEvaluation") -> "tuple[float, tuple[Point, ...]]":
    """Top-1 error in percent at full precision and at plain widths, for a plot, where lower is better."""
    from quept.plots import Point

    def error(of: "Comparison") -> float:
        return 100 * (1 - of.accuracy.top1)

    points = tuple(
        Point(
            int(result.bits),
            error(result.calibrated),
            None if result.baseline is None else error(result.baseline),
            result.bytes,
        )
        for result in evaluation.results
        if result.calibrated is not None and result.precision.isdigit()
    )
    return 100 * (1 - evaluation.full_precision.top1), points


def _lost(of: "Comparison | None") -> str:
    """Points lost to full precision, with the standard error of the paired difference."""
    return "-" if of is None else f"{100 * of.lost:.2f} ± {100 * of.lost_error:.2f}"
