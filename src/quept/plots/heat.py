"""Sensitivities as a heat map: a row for each part of a model, a column for each precision."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quept.errors import InvalidInput
from quept.plots.drawing import Table
from quept.plots.scale import printable
from quept.plots.style import INK

# Of cells, whose colours do not change on a dark page: so these are none of the page's own colours.
_ON_DARK, _ON_LIGHT, _LIGHT_FROM = "#fdfdfd", "#101010", 0.6
_ROW = 0.17  # inches
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the colour bar


@dataclass(frozen=True)
class HeatMap:
    """A number, of which lower is better, for each part of a model and each precision.

    Attributes:
        title: The heading.
        metric: Name of the number, with its unit.
        parts: Numbers by part and precision; a part need not have all precisions.

    Raises:
        InvalidInput: There is no number at all.
    """

    title: str
    metric: str
    parts: Mapping[str, Mapping[str, float]]

    def __post_init__(self) -> None:
        if not any(self.parts.values()):
            raise InvalidInput("A heat map needs a number for one part at least; the table holds none.")

    @property
    def summary(self) -> str:
        """The plot in one sentence."""
        return f"{self.metric} by part and precision; lower is better, and darker."

    @property
    def height(self) -> float:
        """Height in inches."""
        return max(3.0, 1.2 + _ROW * len(self.parts))

    @property
    def precisions(self) -> list[str]:
        """The columns, in order of first appearance."""
        return list(dict.fromkeys(precision for numbers in self.parts.values() for precision in numbers))

    def shade(self, value: float | None) -> float | None:
        """Return a number's rank among all, from 0 to 1 by its logarithm; one that is not positive ranks lowest."""
        if value is None:
            return None
        if value <= 0:
            return 0.0
        low, high = map(math.log, self._limits())
        return (math.log(value) - low) / (high - low) if high > low else 1.0

    def draw(self, axes: Any) -> None:
        """Draw the heat map on matplotlib's `axes`, and its colour bar beside them."""
        columns, names = self.precisions, [printable(name) for name in self.parts]
        shades = [[self.shade(numbers.get(column)) for column in columns] for numbers in self.parts.values()]
        filled = [[math.nan if shade is None else shade for shade in row] for row in shades]
        mesh = axes.pcolormesh(filled, cmap="viridis", vmin=0, vmax=1)
        for row, (numbers, shaded) in enumerate(zip(self.parts.values(), shades, strict=True)):
            for column, shade in enumerate(shaded):
                if shade is not None:
                    color = _ON_LIGHT if shade >= _LIGHT_FROM else _ON_DARK
                    # Clipped, which spares the layout engine measuring every one of them.
                    style = {"ha": "center", "va": "center_baseline", "fontsize": 6.5, "clip_on": True, "color": color}
                    axes.text(column + 0.5, row + 0.5, f"{numbers[columns[column]]:.1e}", **style)
        axes.invert_yaxis()  # the first part is at the top
        axes.set_xticks([at + 0.5 for at in range(len(columns))], map(printable, columns), fontsize=9, color=INK)
        axes.set_yticks([at + 0.5 for at in range(len(names))], names, fontsize=6.5, color=INK, parse_math=False)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02, aspect=6 * self.height)
        bar.solids.set_rasterized(False)  # a page's security policy lets no picture in, not even from the page itself
        bar.solids.set_edgecolor("face")  # or seams show between the colours
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=8, colors=INK)
        bar.set_label(f"{printable(self.metric)} (log scale)", fontsize=9, color=INK, parse_math=False)
        low, high = self._limits()
        ticks = _TICKS if high else ()
        bar.set_ticks(ticks, labels=[f"{low ** (1 - tick) * high**tick:.1e}" for tick in ticks])

    def notes(self) -> Mapping[str, Sequence[str]]:
        """Return no tooltips: every cell shows its number."""
        return {}

    def table(self) -> Table:
        """Return all figures as text."""
        columns = self.precisions
        rows = [
            (name, *(f"{numbers[column]:.1e}" if column in numbers else "\N{EM DASH}" for column in columns))
            for name, numbers in self.parts.items()
        ]
        return Table(("part", *columns), rows)

    def _limits(self) -> tuple[float, float]:
        """Return the lowest and the highest positive number, or zeros if there is none."""
        positive = [number for numbers in self.parts.values() for number in numbers.values() if number > 0]
        return (min(positive), max(positive)) if positive else (0.0, 0.0)
