"""Plots as files: PNG images, and web pages that hold the same drawing as SVG and the figures as a table."""

import io
import textwrap
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from quept.errors import QueptError
from quept.files import replacing
from quept.plots import page
from quept.plots.scale import printable
from quept.plots.style import BLUE, FAINT, INK, PAPER, RULE, VERMILION

_WIDTH, _DPI = 7.0, 150  # inches, and pixels per inch of a PNG
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# Text stays text, in matplotlib's own font whatever a user's settings are. Equal plots give equal bytes: without the
# salt, identifiers are drawn at random.
_SETTINGS = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "svg.fonttype": "none",
    "svg.hashsalt": "quept",
}
# Colours that a page defines, one set for a light and one for a dark screen.
_VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    RULE: "var(--rule)",
    PAPER: "var(--page)",
    BLUE: "var(--quept)",
    VERMILION: "var(--rounding)",
}


class Table(NamedTuple):
    """The figures of a plot as text; the first column names the rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


class Plot(Protocol):
    """A plot that `write_plot` can write."""

    @property
    def title(self) -> str:
        """The heading; any text."""

    @property
    def summary(self) -> str:
        """The plot in one sentence, for those who cannot see it too."""

    @property
    def height(self) -> float:
        """Height in inches; all plots are 7 inches wide."""

    def draw(self, axes: Any) -> None:
        """Draw everything but the title on matplotlib's `axes`."""

    def notes(self) -> Mapping[str, Sequence[str]]:
        """Return a tooltip for each marker of a line, by the line's `gid`."""

    def table(self) -> Table:
        """Return all figures as text."""


def require_matplotlib() -> None:
    """Check that plots can be drawn, for callers that measure for long before they draw.

    Raises:
        QueptError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise QueptError("Plots need matplotlib, which is not installed: run `pip install 'quept[plots]'`.") from error


def write_plot(plot: Plot, path: Path) -> None:
    """Write `plot` to `path`, replacing it: a PNG image, or a self-contained web page where `path` ends in .html.

    Equal plots give equal bytes with one version of matplotlib.

    Raises:
        QueptError: matplotlib is not installed, or the file cannot be written.
    """
    content = _page(plot).encode() if path.suffix == ".html" else _png(plot)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _png(plot: Plot) -> bytes:
    figure = _drawn(plot)
    filled = textwrap.fill(printable(plot.title), 62, max_lines=2, placeholder=" ...")
    # A title is a name, not a formula: "$" must not start one.
    figure.suptitle(filled, x=0.02, ha="left", fontsize=12, fontweight="bold", color=INK, parse_math=False)
    return _saved(figure, "png", facecolor=PAPER)


def _page(plot: Plot) -> str:
    image = _saved(_drawn(plot), "svg", transparent=True, metadata={"Date": None, "Creator": None})
    table = plot.table()
    return page.render(
        plot.title,
        plot.summary,
        page.scrolling("chart", _embedded(image, plot)),
        page.scrolling("figures", page.table(table.columns, table.rows, table.caption)),
    )


def _drawn(plot: Plot) -> Any:
    """Return matplotlib's figure with the plot on it; `pyplot`, which is for screens, is not needed."""
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(_WIDTH, plot.height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    plot.draw(figure.add_subplot())
    return figure


def _saved(figure: Any, kind: str, **options: Any) -> bytes:
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context(_SETTINGS), warnings.catch_warnings():
        # Of characters in names that matplotlib's font lacks: the image shows boxes for them, the page has other fonts.
        warnings.filterwarnings("ignore", r"Glyph \d+ ", UserWarning)
        figure.savefig(file, format=kind, dpi=_DPI, **options)
    return file.getvalue()


def _embedded(image: bytes, plot: Plot) -> str:
    """Return matplotlib's SVG as an element of a page, with the page's colours, tooltips and an alternative text."""
    root = ET.fromstring(image)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for length in ("width", "height"):
        del root.attrib[length]  # the page's style gives it the width of the column
    for element in root.iter():
        if style := element.get("style"):
            for colour, variable in _VARIABLES.items():
                style = style.replace(colour, variable)
            element.set("style", style)
    for line, notes in plot.notes().items():
        group = root.find(f".//*[@id='{line}']")
        markers = () if group is None else group.iter(f"{{{_SVG}}}use")
        for marker, note in zip(markers, notes, strict=True):
            ET.SubElement(marker, f"{{{_SVG}}}title").text = printable(note)
    root.set("role", "img")
    root.set("aria-label", printable(f"{plot.summary} The table below holds the figures."))
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    return ET.tostring(root, encoding="unicode")
