"""The plot as a PNG image, by matplotlib."""

import io
import math
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quept.errors import QueptError
from quept.files import replacing
from quept.plots.curve import (
    Axis,
    Curve,
    Series,
    axis_of,
    drawable,
    format_value,
    full_precision_label,
    metric_label,
    printable,
    series_of,
    sizes_of,
    widths_of,
)

# Blue and vermilion of the Okabe-Ito palette. The markers tell the lines apart without colour too, and the
# hollow square shows around the disc where the two lines meet.
STYLES: dict[str, dict[str, Any]] = {
    "quept": {"color": "#0072b2", "marker": "o", "markersize": 5.5, "linewidth": 2.2, "zorder": 4},
    "rounding": {
        "color": "#d55e00",
        "marker": "s",
        "markersize": 8,
        "markerfacecolor": "white",
        "linewidth": 1.6,
        "zorder": 3,
    },
}
INK, FAINT, RULE = "#222222", "#595959", "#e3e3e3"


def write_png(curve: Curve, path: Path) -> None:
    """Draw `curve` into the PNG file `path`, replacing it; needs matplotlib."""
    with drawing(path) as figure:
        _draw(figure.add_subplot(), curve)


@contextmanager
def drawing(path: Path, height: float = 4.5) -> Iterator[Any]:
    """Yield a matplotlib figure, `height` inches high, to draw on; it becomes the PNG file `path`, replacing it."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise QueptError(
            "Drawing a PNG needs matplotlib, which is not installed: pip install 'quept[plots]'"
        ) from error
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(7.0, height), dpi=150, layout=layout, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    yield figure
    image = io.BytesIO()
    canvas.print_png(image)
    with replacing(path) as temporary:
        temporary.write_bytes(image.getvalue())


def _draw(axes: Any, curve: Curve) -> None:
    axis, lines = axis_of(curve), series_of(curve)
    for line in lines:
        values = [value if drawable(value) else math.nan for _, value in line.values]
        axes.plot([bits for bits, _ in line.values], values, label=line.label, **STYLES[line.key])
    if drawable(curve.full_precision):
        label = full_precision_label(curve)
        axes.axhline(curve.full_precision, color=FAINT, linewidth=1.3, dashes=(5, 3), label=label, zorder=2)
    for row, line in enumerate(line for line in lines if line.off_scale):
        _mark_off_scale(axes, line, height=0.96 - 0.07 * row)
    _frame(axes, curve, axis)


def _mark_off_scale(axes: Any, line: Series, height: float) -> None:
    place = axes.get_xaxis_transform()
    color = STYLES[line.key]["color"]
    for bits, value in line.off_scale:
        axes.plot([bits], [height], marker="^", markersize=6, color=color, transform=place, zorder=5)
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


def _frame(axes: Any, curve: Curve, axis: Axis) -> None:
    widths, sizes = widths_of(curve), sizes_of(curve)
    axes.set_xlim(widths[0] - 0.4, widths[-1] + 0.4)
    axes.set_xticks(widths, [f"{bits} bits\n{sizes.get(bits, '')}".rstrip() for bits in widths])
    frame_values(axes, axis)
    # A title is a name, not a formula: "$" must not start one.
    axes.set_ylabel(metric_label(curve, axis), fontsize=10, color=INK, parse_math=False)
    entitle(axes, curve.title)
    explain(axes)


def frame_values(axes: Any, axis: Axis) -> None:
    """Give a plot its vertical axis, and take away what distracts."""
    axes.set_yscale("log" if axis.log else "linear")
    axes.set_ylim(axis.low, axis.high)
    axes.set_yticks([tick for tick, _ in axis.ticks], [label for _, label in axis.ticks])
    axes.minorticks_off()
    axes.tick_params(length=0, labelsize=9, colors=INK)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def entitle(axes: Any, title: str) -> None:
    """Set a plot's title: a name, not a formula."""
    filled = textwrap.fill(printable(title), 62, max_lines=2, placeholder=" ...")
    axes.set_title(filled, loc="left", fontsize=12, fontweight="bold", color=INK, pad=27, parse_math=False)


def explain(axes: Any) -> None:
    """Name a plot's lines."""
    # Between the title and the plot, where it can cover no data.
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.005),
        borderaxespad=0.0,
        borderpad=0.3,
        ncols=3,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
