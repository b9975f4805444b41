"""Colours, lines and frames that all plots share."""

from typing import Any, Final

from quept.plots.scale import Axis, drawable, format_bytes, format_value

INK: Final = "#222222"
FAINT: Final = "#595959"
RULE: Final = "#e3e3e3"
PAPER: Final = "#ffffff"
# Blue and vermilion of the Okabe-Ito palette. The markers tell the lines apart without colour too, and the hollow
# square shows around the disc where two lines meet.
BLUE: Final = "#0072b2"
VERMILION: Final = "#d55e00"

LINES: dict[str, dict[str, Any]] = {
    "quept": {"color": BLUE, "marker": "o", "markersize": 5.5, "linewidth": 2.2, "zorder": 4},
    "rounding": {
        "color": VERMILION,
        "marker": "s",
        "markersize": 8,
        "markerfacecolor": PAPER,
        "linewidth": 1.6,
        "zorder": 3,
    },
}


def draw_full_precision(axes: Any, value: float, size: int | None = None) -> None:
    """Draw the full-precision model's value as a dashed line, with its value and size in the legend."""
    if drawable(value):
        known = "" if size is None else f", {format_bytes(size)}"
        label = f"full precision ({format_value(value)}{known})"
        axes.axhline(value, color=FAINT, linewidth=1.3, dashes=(5, 3), label=label, zorder=2)


def frame(axes: Any, axis: Axis, metric: str) -> None:
    """Give a plot its vertical axis and a legend, and take away what distracts."""
    axes.set_yscale("log" if axis.log else "linear")
    axes.set_ylim(axis.low, axis.high)
    axes.set_yticks([tick for tick, _ in axis.ticks], [label for _, label in axis.ticks])
    # Labels are names, not formulas: "$" must not start one.
    axes.set_ylabel(axis.label(metric), fontsize=10, color=INK, parse_math=False)
    axes.minorticks_off()
    axes.tick_params(length=0, labelsize=9, colors=INK)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    # Above the plot, where the legend can cover no data.
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
