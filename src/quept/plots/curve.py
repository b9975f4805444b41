"""A metric against bits: quept's line, rounding-to-nearest's, and full precision."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from quept.errors import InvalidInput
from quept.plots.drawing import Table
from quept.plots.scale import Axis, axis_over, drawable, format_bytes, format_value
from quept.plots.style import LINES, draw_full_precision, frame


@dataclass(frozen=True)
class Point:
    """The metric at one bit-width: quept's, rounding-to-nearest's if measured, and the model's bytes if known."""

    bits: int
    value: float
    baseline: float | None
    bytes: int | None


@dataclass(frozen=True)
class Series:
    """One line of the plot, as (bits, value) pairs in order of bits."""

    key: str
    label: str
    values: tuple[tuple[int, float], ...]

    @property
    def off_scale(self) -> list[tuple[int, float]]:
        """The pairs that have no place on the axis and are marked at the top edge."""
        return [pair for pair in self.values if not drawable(pair[1])]


@dataclass(frozen=True)
class Curve:
    """A metric, of which lower is better, at one or more bit-widths and in full precision.

    Attributes:
        title: The heading.
        metric: Name of the metric, with its unit.
        full_precision: The metric of the full-precision model; NaN leaves its line out.
        points: At least one; put in order of bits.
        full_precision_bytes: Size of the full-precision model, if known.

    Raises:
        InvalidInput: There are no points.
    """

    height: ClassVar[float] = 4.5  # inches

    title: str
    metric: str
    full_precision: float
    points: tuple[Point, ...]
    full_precision_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.points:
            raise InvalidInput("A plot needs the metric at one bit-width at least; there are no points to draw.")
        object.__setattr__(self, "points", tuple(sorted(self.points, key=lambda point: point.bits)))

    @property
    def summary(self) -> str:
        """The plot in one sentence."""
        return f"{self.metric} at each bit-width; lower is better."

    @property
    def series(self) -> list[Series]:
        """The lines to draw, quept's first; rounding-to-nearest's only if it was measured."""
        quept = tuple((point.bits, point.value) for point in self.points)
        rounding = tuple((point.bits, point.baseline) for point in self.points if point.baseline is not None)
        lines = [Series("quept", "quept", quept), Series("rounding", "rounding to nearest", rounding)]
        return [line for line in lines if line.values]

    @property
    def axis(self) -> Axis:
        """The vertical axis."""
        lines = self.series
        values = [value for line in lines for _, value in line.values] + [self.full_precision]
        return axis_over(values, marks=any(line.off_scale for line in lines))

    def draw(self, axes: Any) -> None:
        """Draw the curve on matplotlib's `axes`."""
        lines = self.series
        for line in lines:
            values = [value if drawable(value) else math.nan for _, value in line.values]
            axes.plot([bits for bits, _ in line.values], values, label=line.label, gid=line.key, **LINES[line.key])
        draw_full_precision(axes, self.full_precision, self.full_precision_bytes)
        for row, line in enumerate(line for line in lines if line.off_scale):
            _mark_off_scale(axes, line, height=0.96 - 0.07 * row)
        # 2 to 8 bits at least, so that plots of different runs line up.
        shown = range(min(2, self.points[0].bits), max(8, self.points[-1].bits) + 1)
        sizes = {point.bits: format_bytes(point.bytes) for point in self.points if point.bytes is not None}
        axes.set_xlim(shown[0] - 0.4, shown[-1] + 0.4)
        axes.set_xticks(shown, [f"{bits} bits\n{sizes.get(bits, '')}".rstrip() for bits in shown])
        frame(axes, self.axis, self.metric)

    def notes(self) -> Mapping[str, Sequence[str]]:
        """Return a tooltip for every point that is drawn, by line."""
        return {
            line.key: [
                f"{bits} bits, {line.label}: {self.metric} {format_value(value)}"
                for bits, value in line.values
                if drawable(value)
            ]
            for line in self.series
        }

    def table(self) -> Table:
        """Return all figures as text."""
        size = self.full_precision_bytes
        note = "" if size is None else f"; in full precision the model takes {format_bytes(size)}"
        return Table(
            ("bits", "quept", "rounding to nearest", "full precision", "size"),
            [
                (
                    str(point.bits),
                    format_value(point.value),
                    "\N{EM DASH}" if point.baseline is None else format_value(point.baseline),
                    format_value(self.full_precision),
                    "\N{EM DASH}" if point.bytes is None else format_bytes(point.bytes),
                )
                for point in self.points
            ],
            f"{self.metric} by bits{note}",
        )


def _mark_off_scale(axes: Any, line: Series, height: float) -> None:
    place = axes.get_xaxis_transform()
    color = LINES[line.key]["color"]
    for bits, value in line.off_scale:
        mark = f"off-scale-{line.key}-{bits}"
        axes.plot([bits], [height], marker="^", markersize=6, color=color, transform=place, zorder=5, gid=mark)
        axes.annotate(
            format_value(value),
            (bits, height),
            xycoords=place,
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=color,
        )
