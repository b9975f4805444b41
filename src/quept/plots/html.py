"""The plot as one web page that needs nothing else: an SVG with tooltips, and the figures as a table."""

from collections.abc import Callable, Iterable
from pathlib import Path

from quept.plots.curve import (
    Axis,
    Curve,
    Point,
    Series,
    axis_of,
    drawable,
    format_bytes,
    format_value,
    full_precision_label,
    metric_label,
    series_of,
    sizes_of,
    widths_of,
)
from quept.plots.page import row, scrolling, tag, text, write_page

_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 736, 44, 380


def write_html(curve: Curve, path: Path) -> None:
    """Write `curve` as a self-contained page to `path`, replacing it; equal curves give equal bytes."""
    summary = f"{curve.metric} at each width; lower is better."
    write_page(path, curve.title, summary, scrolling("chart", _svg(curve)), scrolling("figures", _table(curve)))


def _svg(curve: Curve) -> str:
    axis, lines, widths = axis_of(curve), series_of(curve), widths_of(curve)

    def x(bits: float) -> float:
        return _LEFT + (bits - widths[0] + 0.4) / (widths[-1] - widths[0] + 0.8) * (_RIGHT - _LEFT)

    def y(value: float) -> float:
        return _BOTTOM - axis.fraction(value) * (_BOTTOM - _TOP)

    parts = [*_legend(curve, lines), *_frame(curve, axis, x, y)]
    if drawable(curve.full_precision):
        height = y(curve.full_precision)
        note = tag("title", text(full_precision_label(curve)))
        parts.append(tag("line", note, class_="full", x1=_LEFT, x2=_RIGHT, y1=height, y2=height))
    # In reverse, so that quept's line lies on top.
    for line in reversed(lines):
        parts.extend(_line(curve, line, x, y))
    for place, line in enumerate(line for line in lines if line.off_scale):
        parts.extend(_off_scale(curve, line, x, _TOP + 12.0 + 22 * place))
    return tag(
        "svg",
        "\n",
        "\n".join(parts),
        "\n",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{curve.metric} against bits; the table below holds the figures",
    )


def _legend(curve: Curve, lines: list[Series]) -> Iterable[str]:
    left = float(_LEFT)
    keys = [(line.key, line.label) for line in lines]
    if drawable(curve.full_precision):
        keys.append(("full", full_precision_label(curve)))
    for key, label in keys:
        kind = "full" if key == "full" else f"line {key}"
        yield tag("line", class_=kind, x1=left, x2=left + 28, y1=16, y2=16)
        if key != "full":
            yield _marker(key, left + 14, 16.0)
        yield tag("text", text(label), x=left + 36, y=20.5)
        left += 36 + 7.0 * len(label) + 24


def _frame(curve: Curve, axis: Axis, x: Callable[[float], float], y: Callable[[float], float]) -> Iterable[str]:
    for tick, label in axis.ticks:
        yield tag("line", class_="grid", x1=_LEFT, x2=_RIGHT, y1=y(tick), y2=y(tick))
        yield tag("text", label, x=_LEFT - 10, y=y(tick) + 4.5, text_anchor="end")
    yield tag("line", class_="base", x1=_LEFT, x2=_RIGHT, y1=_BOTTOM, y2=_BOTTOM)
    sizes = sizes_of(curve)
    for bits in widths_of(curve):
        yield tag("text", f"{bits} bits", x=x(bits), y=_BOTTOM + 22, text_anchor="middle")
        if bits in sizes:
            size = sizes[bits]
            yield tag("text", size, class_="size", x=x(bits), y=_BOTTOM + 40, text_anchor="middle")
    middle = (_TOP + _BOTTOM) / 2
    yield tag(
        "text",
        text(metric_label(curve, axis)),
        class_="metric",
        transform=f"translate(18 {middle:g}) rotate(-90)",
        text_anchor="middle",
    )


def _line(curve: Curve, line: Series, x: Callable[[float], float], y: Callable[[float], float]) -> Iterable[str]:
    for run in line.runs:
        path = " ".join(f"{x(bits):.2f},{y(value):.2f}" for bits, value in run)
        yield tag("polyline", class_=f"line {line.key}", points=path)
    for run in line.runs:
        for bits, value in run:
            yield _marker(line.key, x(bits), y(value), _tooltip(curve, line, bits, value))


def _marker(key: str, x: float, y: float, *children: str) -> str:
    if key == "quept":
        return tag("circle", *children, class_="point quept", cx=x, cy=y, r=5)
    return tag("rect", *children, class_=f"point {key}", x=x - 7, y=y - 7, width=14, height=14)


def _off_scale(curve: Curve, line: Series, x: Callable[[float], float], top: float) -> Iterable[str]:
    for bits, value in line.off_scale:
        left = x(bits)
        triangle = f"{left - 5:.2f},{top + 4:.2f} {left + 5:.2f},{top + 4:.2f} {left:.2f},{top - 6:.2f}"
        note = _tooltip(curve, line, bits, value)
        yield tag("polygon", note, class_=f"off-scale {line.key}", points=triangle)
        yield tag("text", format_value(value), class_=f"off-scale {line.key}", x=left + 9, y=top + 4)


def _tooltip(curve: Curve, line: Series, bits: int, value: float) -> str:
    return tag("title", text(f"{bits} bits, {line.label}: {curve.metric} {format_value(value)}"))


def _table(curve: Curve) -> str:
    head = row("th", "bits", "quept", "rounding to nearest", "full precision", "size", scope="col")
    rows = (_figures(point, curve.full_precision) for point in curve.points)
    size = curve.full_precision_bytes
    note = "" if size is None else f"; in full precision the model takes {format_bytes(size)}"
    caption = tag("caption", text(f"{curve.metric} by bits{note}"))
    return tag("table", "\n", caption, "\n", tag("thead", head), "\n", tag("tbody", *rows), "\n")


def _figures(point: Point, full_precision: float) -> str:
    rounding = "&mdash;" if point.baseline is None else format_value(point.baseline)
    size = "&mdash;" if point.bytes is None else format_bytes(point.bytes)
    return row("td", str(point.bits), format_value(point.value), rounding, format_value(full_precision), size)
