"""Accuracy against bytes: mixed plans as a line, uniform widths beside it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from quept.errors import InvalidInput
from quept.plots.curve import Axis, axis_over, drawable, format_bytes, format_value, printable
from quept.plots.page import row, scrolling, tag, text, write_page
from quept.plots.png import FAINT, INK, STYLES, drawing, entitle, explain, frame_values

_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 736, 44, 392
_TICKS = 6


@dataclass(frozen=True)
class FrontPoint:
    """A plan, or a uniform width, by name: the model's bytes at it, and the metric."""

    name: str
    bytes: int
    value: float


@dataclass(frozen=True)
class Front:
    """A metric, of which lower is better, of plans and of uniform widths."""

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
    def series(self) -> list[tuple[str, str, tuple[FrontPoint, ...]]]:
        """The lines: style, label and points."""
        lines = [("quept", "mixed plans", self.plans), ("rounding", "uniform widths", self.uniform)]
        return [line for line in lines if line[2]]

    @property
    def points(self) -> list[FrontPoint]:
        """All points."""
        return [*self.plans, *self.uniform]

    @property
    def axis(self) -> Axis:
        """The vertical axis."""
        return axis_over([*(point.value for point in self.points), self.full_precision])


def write_front(front: Front, path: Path) -> None:
    """Draw `front` into `path`, which ends in .png (that needs matplotlib) or .html, replacing it."""
    if path.suffix == ".png":
        _write_png(front, path)
    else:
        summary = f"{front.metric} against the size of the model; lower and further left is better."
        write_page(path, front.title, summary, scrolling("chart", _svg(front)), scrolling("figures", _table(front)))


def _write_png(front: Front, path: Path) -> None:
    with drawing(path) as figure:
        axes = figure.add_subplot()
        for style, label, points in front.series:
            drawn = [point for point in points if drawable(point.value)]
            axes.plot([point.bytes for point in drawn], [point.value for point in drawn], label=label, **STYLES[style])
        for point in front.uniform:
            if drawable(point.value):
                axes.annotate(point.name, (point.bytes, point.value), xytext=(5, 6), textcoords="offset points")
        if drawable(front.full_precision):
            label = f"full precision ({format_value(front.full_precision)})"
            axes.axhline(front.full_precision, color=FAINT, linewidth=1.3, dashes=(5, 3), label=label, zorder=2)
        frame_values(axes, front.axis)
        ticks = _sizes(front)
        axes.set_xticks(ticks, [format_bytes(tick) for tick in ticks])
        log = ", log scale" if front.axis.log else ""
        axes.set_ylabel(f"{printable(front.metric)} (lower is better{log})", fontsize=10, color=INK, parse_math=False)
        entitle(axes, front.title)
        explain(axes)


def _sizes(front: Front) -> list[int]:
    """Sizes to name below the plot, evenly from the smallest to the largest."""
    low, high = min(point.bytes for point in front.points), max(point.bytes for point in front.points)
    return [round(low + (high - low) * step / (_TICKS - 1)) for step in range(_TICKS)] if high > low else [low]


def _svg(front: Front) -> str:
    axis, sizes = front.axis, _sizes(front)
    low, span = sizes[0], max(sizes[-1] - sizes[0], 1)

    def x(count: float) -> float:
        return _LEFT + 20 + (count - low) / span * (_RIGHT - _LEFT - 60)

    def y(value: float) -> float:
        return _BOTTOM - axis.fraction(value) * (_BOTTOM - _TOP)

    parts = [*_frame(front, axis, sizes, x, y)]
    for style, _, points in reversed(front.series):
        drawn = [point for point in points if drawable(point.value)]
        path = " ".join(f"{x(point.bytes):.2f},{y(point.value):.2f}" for point in drawn)
        parts.append(tag("polyline", class_=f"line {style}", points=path))
        for point in drawn:
            note = tag("title", text(_described(front, point)))
            parts.append(tag("circle", note, class_=f"point {style}", cx=x(point.bytes), cy=y(point.value), r=5))
            if style == "rounding":
                parts.append(tag("text", text(point.name), x=x(point.bytes) + 8, y=y(point.value) - 8))
    label = f"{front.metric} against size; the table below holds the figures"
    box = f"0 0 {_WIDTH} {_HEIGHT}"
    content = "\n".join(parts)
    return tag(
        "svg", "\n", content, "\n", xmlns="http://www.w3.org/2000/svg", viewBox=box, role="img", aria_label=label
    )


def _frame(
    front: Front, axis: Axis, sizes: list[int], x: Callable[[float], float], y: Callable[[float], float]
) -> Iterable[str]:
    left = float(_LEFT)
    for style, label, _ in front.series:
        yield tag("line", class_=f"line {style}", x1=left, x2=left + 28, y1=16, y2=16)
        yield tag("text", text(label), x=left + 36, y=20.5)
        left += 60 + 7.0 * len(label)
    if drawable(front.full_precision):
        label = f"full precision ({format_value(front.full_precision)})"
        yield tag("line", class_="full", x1=left, x2=left + 28, y1=16, y2=16)
        yield tag("text", text(label), x=left + 36, y=20.5)
        height = y(front.full_precision)
        yield tag("line", class_="full", x1=_LEFT, x2=_RIGHT, y1=height, y2=height)
    for tick, label in axis.ticks:
        yield tag("line", class_="grid", x1=_LEFT, x2=_RIGHT, y1=y(tick), y2=y(tick))
        yield tag("text", label, x=_LEFT - 10, y=y(tick) + 4.5, text_anchor="end")
    yield tag("line", class_="base", x1=_LEFT, x2=_RIGHT, y1=_BOTTOM, y2=_BOTTOM)
    for size in sizes:
        yield tag("text", format_bytes(size), x=x(size), y=_BOTTOM + 22, text_anchor="middle")


def _described(front: Front, point: FrontPoint) -> str:
    return f"{point.name}, {format_bytes(point.bytes)}: {front.metric} {format_value(point.value)}"


def _table(front: Front) -> str:
    head = row("th", "plan", "size", text(front.metric), scope="col")
    points = sorted(front.points, key=lambda point: point.bytes)
    rows = (row("td", text(point.name), format_bytes(point.bytes), format_value(point.value)) for point in points)
    return tag("table", tag("thead", head), "\n", tag("tbody", *rows))
