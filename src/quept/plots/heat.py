"""Sensitivities as a heat map: a row for each part of a model, a column for each width."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quept.errors import InvalidInput
from quept.plots.page import row, scrolling, tag, text, write_page
from quept.plots.png import INK, drawing, entitle

# From dark violet to yellow, evenly light to the eye and told apart without colour: five stops of "viridis".
_COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_STYLE = ".heat td { text-align: center; } .heat th { white-space: nowrap; }\n"


@dataclass(frozen=True)
class HeatMap:
    """A number, of which lower is better, for each part and width; parts need not have all widths."""

    title: str
    metric: str
    parts: Mapping[str, Mapping[str, float]]

    def __post_init__(self) -> None:
        if not any(self.parts.values()):
            raise InvalidInput("A heat map needs a number for one part at least; the table holds none.")

    @property
    def widths(self) -> list[str]:
        """The columns."""
        return list(dict.fromkeys(width for numbers in self.parts.values() for width in numbers))

    def shade(self, value: float | None) -> float | None:
        """How high a number is among all, from 0 to 1 by its logarithm; what is not positive counts as lowest."""
        if value is None:
            return None
        positive = [number for numbers in self.parts.values() for number in numbers.values() if number > 0]
        if value <= 0 or not positive:
            return 0.0
        low, high = math.log(min(positive)), math.log(max(positive))
        return (math.log(value) - low) / (high - low) if high > low else 1.0


def write_heat_map(heat: HeatMap, path: Path) -> None:
    """Draw `heat` into `path`, which ends in .png (that needs matplotlib) or .html, replacing it."""
    if path.suffix == ".png":
        _write_png(heat, path)
    else:
        _write_html(heat, path)


def _write_png(heat: HeatMap, path: Path) -> None:
    widths, names = heat.widths, list(heat.parts)
    shades = [[heat.shade(heat.parts[name].get(width)) for width in widths] for name in names]
    with drawing(path, height=max(3.0, 1.2 + 0.17 * len(names))) as figure:
        axes = figure.add_subplot()
        filled = [[math.nan if shade is None else shade for shade in line] for line in shades]
        image = axes.imshow(filled, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks(range(len(widths)), widths, fontsize=9, color=INK)
        axes.set_yticks(range(len(names)), names, fontsize=6.5, color=INK, parse_math=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        values = [number for numbers in heat.parts.values() for number in numbers.values() if number > 0]
        bar = figure.colorbar(image, ax=axes, label=f"{heat.metric} (log scale)")
        if values:
            bar.set_ticks([0, 1], labels=[f"{min(values):.1e}", f"{max(values):.1e}"])
        entitle(axes, heat.title)


def _write_html(heat: HeatMap, path: Path) -> None:
    widths = heat.widths
    head = row("th", "part", *(text(width) for width in widths), scope="col")
    rows = []
    for name, numbers in heat.parts.items():
        cells = [tag("th", text(name), scope="row"), *(_cell(heat, numbers.get(width)) for width in widths)]
        rows.append(tag("tr", *cells))
    table = tag("table", tag("thead", head), "\n", tag("tbody", *rows), class_="heat")
    summary = f"{heat.metric} by part and width; lower is better, and darker."
    write_page(path, heat.title, summary, scrolling("figures", table), style=_STYLE)


def _cell(heat: HeatMap, value: float | None) -> str:
    shade = heat.shade(value)
    if shade is None or value is None:
        return tag("td", "&mdash;")
    red, green, blue = _colour(shade)
    ink = "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"
    return tag("td", f"{value:.1e}", style=f"background: rgb({red} {green} {blue}); color: {ink}")


def _colour(shade: float) -> tuple[int, int, int]:
    place = min(max(shade, 0.0), 1.0) * (len(_COLOURS) - 1)
    low = min(int(place), len(_COLOURS) - 2)
    red, green, blue = (
        round(a + (b - a) * (place - low)) for a, b in zip(_COLOURS[low], _COLOURS[low + 1], strict=True)
    )
    return red, green, blue
