"""What a plot shows, and the choices that every drawing of it shares: series, scale, ticks and wording."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from quept.errors import InvalidInput

# One value beyond this would squash all the others; like infinity, it is named at the top edge instead.
_LARGEST_DRAWN = 1e15
# Linear while the values are within this factor of each other.
_LINEAR_UP_TO = 4.0
_MOST_TICKS = 10


@dataclass(frozen=True)
class Point:
    """The metric at one width: quept's, rounding-to-nearest's if measured, and the model's size if known."""

    bits: int
    value: float
    baseline: float | None
    bytes: int | None


@dataclass(frozen=True)
class Curve:
    """A metric, of which lower is better, at one or more widths and in full precision."""

    title: str
    metric: str
    full_precision: float
    points: tuple[Point, ...]
    full_precision_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.points:
            raise InvalidInput("A plot needs the metric at one width at least; there are no points to draw.")
        object.__setattr__(self, "points", tuple(sorted(self.points, key=lambda point: point.bits)))


@dataclass(frozen=True)
class Series:
    """One line of the plot, as (bits, value) pairs in order of bits."""

    key: str
    label: str
    values: tuple[tuple[int, float], ...]

    @property
    def runs(self) -> list[list[tuple[int, float]]]:
        """The stretches to join by a line: a value that cannot be drawn leaves a gap, it is not bridged."""
        grouped = groupby(self.values, key=lambda pair: drawable(pair[1]))
        return [list(pairs) for can_draw, pairs in grouped if can_draw]

    @property
    def off_scale(self) -> list[tuple[int, float]]:
        """The pairs to mark at the top edge instead."""
        return [pair for pair in self.values if not drawable(pair[1])]


@dataclass(frozen=True)
class Axis:
    """The vertical axis: its ends, its kind, and its ticks as (value, label) pairs."""

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def fraction(self, value: float) -> float:
        """Return how far up the axis `value` is: 0 at the low end, 1 at the high end."""
        scale = math.log10 if self.log else float
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))


def drawable(value: float) -> bool:
    """Return whether `value` has a place on the axis; false for infinities, NaN and absurd magnitudes."""
    return abs(value) <= _LARGEST_DRAWN


def series_of(curve: Curve) -> list[Series]:
    """Return the lines to draw, quept's first; rounding-to-nearest's only if it was measured."""
    quept = tuple((point.bits, point.value) for point in curve.points)
    rounding = tuple((point.bits, point.baseline) for point in curve.points if point.baseline is not None)
    lines = [Series("quept", "quept", quept), Series("rounding", "rounding to nearest", rounding)]
    return [line for line in lines if line.values]


def axis_of(curve: Curve) -> Axis:
    """Return a vertical axis with room for every value that can be drawn, and for marks at the top edge."""
    lines = series_of(curve)
    values = [value for line in lines for _, value in line.values] + [curve.full_precision]
    return axis_over(values, marks=any(line.off_scale for line in lines))


def axis_over(values: Iterable[float], marks: bool = False) -> Axis:
    """Return a vertical axis with room for the values that can be drawn and, with `marks`, for marks at the top."""
    drawn = [value for value in values if drawable(value)]
    if not drawn:
        return Axis(0.0, 1.0, log=False, ticks=())
    log = min(drawn) > 1 / _LARGEST_DRAWN and max(drawn) > _LINEAR_UP_TO * min(drawn)
    low, high = (math.log10(end) if log else end for end in (min(drawn), max(drawn)))
    # The second term keeps nearly equal values from being magnified until rounding noise looks like a slope.
    margin = max(0.06 * (high - low), 0.01 * abs(high)) or 1.0
    low, high = low - margin, high + margin
    if marks:
        high += 0.18 * (high - low)
    if log:
        return Axis(10.0**low, 10.0**high, log, tuple((tick, f"{tick:,g}") for tick in _log_ticks(low, high)))
    return Axis(low, high, log, tuple(_linear_ticks(low, high)))


def _linear_ticks(low: float, high: float) -> Iterable[tuple[float, str]]:
    rough = (high - low) / 8
    power = math.floor(math.log10(rough))
    step = next(factor * 10.0**power for factor in (1, 2, 5, 10) if factor * 10.0**power >= rough)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    for index in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield index * step, f"{index * step:.{decimals}f}"


def _log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers between 10**low and 10**high, from the coarsest grid with four or more."""
    ticks: list[float] = []
    for grid in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)):
        ticks = [
            mantissa * 10.0**exponent
            for exponent in range(math.floor(low), math.ceil(high))
            for mantissa in grid
            if low <= math.log10(mantissa) + exponent <= high
        ]
        if len(ticks) >= 4:
            break
    return ticks[:: math.ceil(len(ticks) / _MOST_TICKS)]


def widths_of(curve: Curve) -> range:
    """Return the widths along the horizontal axis: 2 to 8, so that plots of different runs line up."""
    return range(min(2, curve.points[0].bits), max(8, curve.points[-1].bits) + 1)


def sizes_of(curve: Curve) -> dict[int, str]:
    """Return the size at each width where it is known, in words."""
    return {point.bits: format_bytes(point.bytes) for point in curve.points if point.bytes is not None}


def metric_label(curve: Curve, axis: Axis) -> str:
    """Return the label of the vertical axis."""
    return f"{printable(curve.metric)} (lower is better{', log scale' if axis.log else ''})"


def full_precision_label(curve: Curve) -> str:
    """Return the legend of the full-precision line, with its value and, if known, its size."""
    known = curve.full_precision_bytes
    size = "" if known is None else f", {format_bytes(known)}"
    return f"full precision ({format_value(curve.full_precision)}{size})"


def format_value(value: float) -> str:
    """Return a metric's value with as many digits as its magnitude deserves."""
    magnitude = abs(value)
    if not math.isfinite(value):
        return str(value)
    if magnitude >= 1e6 or 0 < magnitude < 1e-3:
        return f"{value:.2e}"
    return f"{value:.3f}" if magnitude < 100 else f"{value:,.1f}"


def format_bytes(count: int) -> str:
    """Return a size in decimal units with three significant digits, such as "250 kB" or "1.44 MB"."""
    if count < 1000:
        return f"{count} B"
    size, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if round(size) < 1000:
            break
        size, unit = size / 1000, larger
    decimals = 0 if size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{decimals}f} {unit}"


def printable(text: str) -> str:
    """Return `text` on one line and without control characters, which neither SVG nor a font can show."""
    return "".join(character if character.isprintable() else " " for character in text)
