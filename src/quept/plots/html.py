"""The plot as one web page that needs nothing else: an SVG with tooltips, and the figures as a table."""

import html
from collections.abc import Callable, Iterable
from pathlib import Path

from quept.files import replacing
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
    printable,
    series_of,
    sizes_of,
    widths_of,
)

_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 736, 44, 380

# Okabe-Ito colours, the lighter ones on a dark page. The markers tell the lines apart without colour too, and
# the hollow square shows around the disc where the two lines meet.
_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #222222; --faint: #595959; --rule: #e3e3e3;
  --quept: #0072b2; --rounding: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --page: #16181c; --ink: #e8e8e8; --faint: #a8adb5;
  --rule: #33373d; --quept: #56b4e9; --rounding: #e69f00; } }
body { margin: 0 auto; max-width: 56rem; padding: 1.5rem 1rem 3rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.4rem; line-height: 1.25; overflow-wrap: anywhere; }
p { margin: 0.25rem 0 1rem; color: var(--faint); }
.scroll { overflow-x: auto; }
svg { display: block; width: 100%; min-width: 34rem; height: auto; font-size: 13px; }
svg text { fill: var(--ink); }
svg text.size, svg text.metric { fill: var(--faint); }
.grid { stroke: var(--rule); }
.base { stroke: var(--faint); }
.full { stroke: var(--faint); stroke-width: 1.5; stroke-dasharray: 7 5; }
.line { fill: none; stroke-width: 2.5; stroke-linejoin: round; }
.line.quept { stroke: var(--quept); }
.line.rounding { stroke: var(--rounding); }
.point.quept { fill: var(--quept); }
.point.rounding { fill: var(--page); stroke: var(--rounding); stroke-width: 1.75; }
svg .off-scale.quept { fill: var(--quept); }
svg .off-scale.rounding { fill: var(--rounding); }
table { margin-top: 1.5rem; width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { padding-bottom: 0.5rem; text-align: left; color: var(--faint); }
th, td { padding: 0.35rem 0.75rem; border-bottom: 1px solid var(--rule); text-align: right; }
th { font-weight: 600; }
thead th { border-bottom-color: var(--faint); }
th:first-child { text-align: left; }
"""


def write_html(curve: Curve, path: Path) -> None:
    """Write `curve` as a self-contained page to `path`, replacing it; equal curves give equal bytes."""
    summary = f"{curve.metric} at each width; lower is better."
    head = (
        '<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(curve.title)}</title>\n<style>{_STYLE}</style>"
    )
    body = "\n".join(
        [
            _tag("h1", _text(curve.title)),
            _tag("p", _text(summary)),
            _scrolling("chart", _svg(curve)),
            _scrolling("figures", _table(curve)),
        ]
    )
    page = f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'
    with replacing(path) as temporary:
        temporary.write_bytes(page.encode())


def _text(text: str) -> str:
    return html.escape(printable(text))


def _tag(name: str, *children: str, **attributes: object) -> str:
    """Return an element; attribute values are escaped here, children are markup already."""
    named = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    opening = "".join(f' {key}="{_text(_number(value))}"' for key, value in named)
    return f"<{name}{opening}>{''.join(children)}</{name}>"


def _number(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _scrolling(label: str, content: str) -> str:
    # Narrow screens scroll inside this box; the keyboard can scroll only what it can focus.
    return _tag("div", "\n", content, "\n", class_="scroll", role="region", aria_label=label, tabindex=0)


def _svg(curve: Curve) -> str:
    axis, lines, widths = axis_of(curve), series_of(curve), widths_of(curve)

    def x(bits: float) -> float:
        return _LEFT + (bits - widths[0] + 0.4) / (widths[-1] - widths[0] + 0.8) * (_RIGHT - _LEFT)

    def y(value: float) -> float:
        return _BOTTOM - axis.fraction(value) * (_BOTTOM - _TOP)

    parts = [*_legend(curve, lines), *_frame(curve, axis, x, y)]
    if drawable(curve.full_precision):
        height = y(curve.full_precision)
        note = _tag("title", _text(full_precision_label(curve)))
        parts.append(_tag("line", note, class_="full", x1=_LEFT, x2=_RIGHT, y1=height, y2=height))
    # In reverse, so that quept's line lies on top.
    for line in reversed(lines):
        parts.extend(_line(curve, line, x, y))
    for row, line in enumerate(line for line in lines if line.off_scale):
        parts.extend(_off_scale(curve, line, x, _TOP + 12.0 + 22 * row))
    return _tag(
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
        yield _tag("line", class_=kind, x1=left, x2=left + 28, y1=16, y2=16)
        if key != "full":
            yield _marker(key, left + 14, 16.0)
        yield _tag("text", _text(label), x=left + 36, y=20.5)
        left += 36 + 7.0 * len(label) + 24


def _frame(curve: Curve, axis: Axis, x: Callable[[float], float], y: Callable[[float], float]) -> Iterable[str]:
    for tick, label in axis.ticks:
        yield _tag("line", class_="grid", x1=_LEFT, x2=_RIGHT, y1=y(tick), y2=y(tick))
        yield _tag("text", label, x=_LEFT - 10, y=y(tick) + 4.5, text_anchor="end")
    yield _tag("line", class_="base", x1=_LEFT, x2=_RIGHT, y1=_BOTTOM, y2=_BOTTOM)
    sizes = sizes_of(curve)
    for bits in widths_of(curve):
        yield _tag("text", f"{bits} bits", x=x(bits), y=_BOTTOM + 22, text_anchor="middle")
        if bits in sizes:
            size = sizes[bits]
            yield _tag("text", size, class_="size", x=x(bits), y=_BOTTOM + 40, text_anchor="middle")
    middle = (_TOP + _BOTTOM) / 2
    yield _tag(
        "text",
        _text(metric_label(curve, axis)),
        class_="metric",
        transform=f"translate(18 {middle:g}) rotate(-90)",
        text_anchor="middle",
    )


def _line(curve: Curve, line: Series, x: Callable[[float], float], y: Callable[[float], float]) -> Iterable[str]:
    for run in line.runs:
        path = " ".join(f"{x(bits):.2f},{y(value):.2f}" for bits, value in run)
        yield _tag("polyline", class_=f"line {line.key}", points=path)
    for run in line.runs:
        for bits, value in run:
            yield _marker(line.key, x(bits), y(value), _tooltip(curve, line, bits, value))


def _marker(key: str, x: float, y: float, *children: str) -> str:
    if key == "quept":
        return _tag("circle", *children, class_="point quept", cx=x, cy=y, r=5)
    return _tag("rect", *children, class_=f"point {key}", x=x - 7, y=y - 7, width=14, height=14)


def _off_scale(curve: Curve, line: Series, x: Callable[[float], float], top: float) -> Iterable[str]:
    for bits, value in line.off_scale:
        left = x(bits)
        triangle = f"{left - 5:.2f},{top + 4:.2f} {left + 5:.2f},{top + 4:.2f} {left:.2f},{top - 6:.2f}"
        note = _tooltip(curve, line, bits, value)
        yield _tag("polygon", note, class_=f"off-scale {line.key}", points=triangle)
        yield _tag("text", format_value(value), class_=f"off-scale {line.key}", x=left + 9, y=top + 4)


def _tooltip(curve: Curve, line: Series, bits: int, value: float) -> str:
    return _tag("title", _text(f"{bits} bits, {line.label}: {curve.metric} {format_value(value)}"))


def _table(curve: Curve) -> str:
    head = _row("th", "bits", "quept", "rounding to nearest", "full precision", "size", scope="col")
    rows = (_figures(point, curve.full_precision) for point in curve.points)
    size = curve.full_precision_bytes
    note = "" if size is None else f"; in full precision the model takes {format_bytes(size)}"
    caption = _tag("caption", _text(f"{curve.metric} by bits{note}"))
    return _tag("table", "\n", caption, "\n", _tag("thead", head), "\n", _tag("tbody", *rows), "\n")


def _figures(point: Point, full_precision: float) -> str:
    rounding = "&mdash;" if point.baseline is None else format_value(point.baseline)
    size = "&mdash;" if point.bytes is None else format_bytes(point.bytes)
    return _row("td", str(point.bits), format_value(point.value), rounding, format_value(full_precision), size)


def _row(cell: str, first: str, *others: str, scope: str = "row") -> str:
    named = {"scope": scope} if cell == "th" else {}
    cells = (_tag(cell, other, **named) for other in others)
    return _tag("tr", _tag("th", first, scope=scope), *cells)
