"""Accuracy against bytes: mixed plans as a line, uniform bit-widths as another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from quept.errors import InvalidInput
from quept.plots.drawing import Table
from quept.plots.scale import Axis, axis_over, drawable, format_bytes, format_value, printable
from quept.plots.style import INK, LINES, draw_full_precision, frame

_TICKS = 6


@dataclass(frozen=True)
class FrontPoint:
    """A plan or a uniform bit-width, by name: the model's bytes at it, and the metric."""

    name: str
    bytes: int
    value: float


@dataclass(frozen=True)
class Front:
    """A metric, of which lower is better, of mixed plans and of uniform bit-widths.

    Attributes:
        title: The heading.
        metric: Name of the metric, with its unit.
        full_precision: The metric of the full-precision model; NaN leaves its line out.
        plans: At least one; put in order of bytes.
        uniform: Uniform bit-widths to compare with; put in order of bytes.

    Raises:
        InvalidInput: There are no plans.
    """

    height: ClassVar[float] = 4.5  # inches

    title: str
    metric: str
    full_precision: float
    plans: tuple[FrontPoint, ...]
    uniform: tuple[FrontPoint, ...]

    def __post_init__(self) -> None:
        if not self.plans:
            raise InvalidInput("A front needs one plan at least; there are no points to draw.")
        for name in ("plans", "uniform"):
            object.__setattr__(self, name, tuple(sorted(getattr(self, name), key=lambda point: point.bytes)))

    @property
    def summary(self) -> str:
        """The plot in one sentence."""
        return f"{self.metric} against the size of the model; lower and further left is better."

    @property
    def series(self) -> list[tuple[str, str, list[FrontPoint]]]:
        """The lines to draw: style, label, and the points that have a place on the axes."""
        lines = (("quept", "mixed plans", self.plans), ("rounding", "uniform bit-widths", self.uniform))
        return [
            (style, label, [point for point in points if drawable(point.value)])
            for style, label, points in lines
            if points
        ]

    @property
    def points(self) -> list[FrontPoint]:
        """All points, in order of bytes."""
        return sorted((*self.plans, *self.uniform), key=lambda point: point.bytes)

    @property
    def axis(self) -> Axis:
        """The vertical axis."""
        return axis_over([*(point.value for point in self.points), self.full_precision])

    def draw(self, axes: Any) -> None:
        """Draw the front on matplotlib's `axes`."""
        for style, label, points in self.series:
            sizes, values = [point.bytes for point in points], [point.value for point in points]
            axes.plot(sizes, values, label=label, gid=style, **LINES[style])
        for point in self.uniform:
            if drawable(point.value):
                axes.annotate(
                    printable(point.name),
                    (point.bytes, point.value),
                    xytext=(7, 6),
                    textcoords="offset points",
                    fontsize=9,
                    color=INK,
                    parse_math=False,
                )
        draw_full_precision(axes, self.full_precision)
        ticks = self._sizes()
        axes.set_xticks(ticks, [format_bytes(tick) for tick in ticks])
        frame(axes, self.axis, self.metric)

    def notes(self) -> Mapping[str, Sequence[str]]:
        """Return a tooltip for every point that is drawn, by line."""
        return {
            style: [
                f"{point.name}, {format_bytes(point.bytes)}: {self.metric} {format_value(point.value)}"
                for point in points
            ]
            for style, _, points in self.series
        }

    def table(self) -> Table:
        """Return all figures as text."""
        rows = [(point.name, format_bytes(point.bytes), format_value(point.value)) for point in self.points]
        return Table(("plan", "size", self.metric), rows)

    def _sizes(self) -> list[int]:
        """Return the sizes to name below the plot, evenly from the smallest to the largest."""
        low, high = self.points[0].bytes, self.points[-1].bytes
        return [round(low + (high - low) * step / (_TICKS - 1)) for step in range(_TICKS)] if high > low else [low]
