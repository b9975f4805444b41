"""Axes and wording that all plots share: limits, ticks, numbers and sizes as text."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

# One value beyond this would squash all others; like infinity, it is named at the top edge instead.
LARGEST_DRAWN = 1e15
# The scale is linear while the values are within this factor of each other.
_LINEAR_UP_TO = 4.0
_MOST_TICKS = 10


@dataclass(frozen=True)
class Axis:
    """A vertical axis: its ends, its kind, and its ticks as (value, label) pairs."""

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def label(self, metric: str) -> str:
        """Return the label for a metric of which lower is better."""
        return f"{printable(metric)} (lower is better{', log scale' if self.log else ''})"


def axis_over(values: Iterable[float], marks: bool = False) -> Axis:
    """Return an axis with room for all values that can be drawn and, with `marks`, for marks at the top edge."""
    drawn = [value for value in values if drawable(value)]
    if not drawn:
        return Axis(0.0, 1.0, log=False, ticks=())
    log = min(drawn) > 1 / LARGEST_DRAWN and max(drawn) > _LINEAR_UP_TO * min(drawn)
    low, high = (math.log10(end) if log else end for end in (min(drawn), max(drawn)))
    # The second term keeps nearly equal values from being magnified until rounding noise looks like a slope.
    margin = max(0.06 * (high - low), 0.01 * abs(high)) or 1.0
    low, high = low - margin, high + margin
    if marks:
        high += 0.18 * (high - low)
    if log:
        return Axis(10.0**low, 10.0**high, log, tuple((tick, f"{tick:,g}") for tick in _log_ticks(low, high)))
    return Axis(low, high, log, tuple(_linear_ticks(low, high)))


def drawable(value: float) -> bool:
    """Return whether `value` has a place on an axis: false for infinities, NaN and absurd magnitudes."""
    return abs(value) <= LARGEST_DRAWN


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
