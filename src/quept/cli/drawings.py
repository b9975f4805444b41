"""Results as plots."""

import math
from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path

from quept.commands.bench import Benchmark
from quept.commands.plan_front import PlanFront
from quept.errors import InvalidInput
from quept.evaluation import AccuracyEvaluation, Comparison, Evaluation
from quept.plots import Curve, Front, FrontPoint, HeatMap, Point, write_plot
from quept.search.allocation import Allocation
from quept.search.budget import Measurement
from quept.search.table import SensitivityTable


@singledispatch
def curve(result: object, title: str) -> Curve:
    """Return the curve of a result against bits; raises `InvalidInput` where it has no plain bit-widths."""
    raise NotImplementedError(type(result).__name__)


@curve.register
def _perplexities(result: Evaluation, title: str) -> Curve:
    if result.original is not None:
        metric, full_precision = "KL divergence (nats per token)", math.nan  # of the original itself it is zero
        found = [(each, each.kl, each.baseline_kl) for each in result.results]
    else:
        metric, full_precision = result.metric, result.full_precision
        found = [(each, each.perplexity, each.baseline) for each in result.results]
    points = [
        Point(int(each.bits), value, baseline, each.bytes)
        for each, value, baseline in found
        if value is not None and each.precision.isdigit()
    ]
    return _curve(title, metric, full_precision, points, result.full_precision_bytes)


@curve.register
def _errors(result: AccuracyEvaluation, title: str) -> Curve:
    def error(of: Comparison) -> float:
        return 100 * (1 - of.accuracy.top1)

    points = [
        Point(
            int(each.bits), error(each.calibrated), None if each.baseline is None else error(each.baseline), each.bytes
        )
        for each in result.results
        if each.calibrated is not None and each.precision.isdigit()
    ]
    full_precision = 100 * (1 - result.full_precision.top1)
    return _curve(title, "top-1 error (%)", full_precision, points, result.full_precision_bytes)


@curve.register
def _speeds(result: Benchmark, title: str) -> Curve:
    points = [
        Point(int(each.precision), 1e3 / each.decode, None, each.memory_bytes)
        for each in result.results
        if each.precision.isdigit()
    ]
    full = result.baseline
    baseline, size = (math.nan, None) if full is None else (1e3 / full.decode, full.memory_bytes)
    return _curve(title, "milliseconds per token", baseline, points, size)


def heat_map(table: SensitivityTable, title: str) -> HeatMap:
    """Return the heat map of a sensitivity table."""
    return HeatMap(f"Sensitivity of {title}", "KL divergence", table.parts)


def draw_front(front: PlanFront, directory: str, output: Path) -> list[str]:
    """Draw a front and its sensitivities into a directory, as PNG and HTML; return the names of the files."""
    picture = Front(
        f"Plans of {directory}",
        front.metric,
        front.full_precision,
        tuple(_point(each, f"{each.allocation.average_bits:.3f} bits") for each in front.plans),
        tuple(_point(each, f"uniform {each.allocation.mean_bits:g}") for each in front.uniform),
    )
    written = []
    for suffix in (".html", ".png"):
        write_plot(picture, output / f"front{suffix}")
        write_plot(heat_map(front.table, directory), output / f"sensitivity{suffix}")
        written += [f"front{suffix}", f"sensitivity{suffix}"]
    return written


def _point(each: Measurement, name: str) -> FrontPoint:
    allocation: Allocation = each.allocation
    return FrontPoint(name, allocation.bytes, each.value)


def _curve(title: str, metric: str, full_precision: float, points: Sequence[Point], size: int | None) -> Curve:
    if not points:
        raise InvalidInput(
            "There is nothing to plot: plots are of artifacts at plain bit-widths. Give an artifact, and bits such as "
            "--bits 2-8."
        )
    return Curve(title, metric, full_precision, tuple(points), size)
