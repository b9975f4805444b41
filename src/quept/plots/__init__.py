"""The plot of quality against bits, as a PNG image and as a self-contained web page."""

from quept.plots.curve import Curve, Point
from quept.plots.html import write_html
from quept.plots.png import write_png

__all__ = ["Curve", "Point", "write_html", "write_png"]
