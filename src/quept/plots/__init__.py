"""Plots as PNG images and as self-contained web pages: quality against bits and bytes, and sensitivities."""

from quept.plots.curve import Curve, Point
from quept.plots.front import Front, FrontPoint, write_front
from quept.plots.heat import HeatMap, write_heat_map
from quept.plots.html import write_html
from quept.plots.png import write_png

__all__ = [
    "Curve",
    "Front",
    "FrontPoint",
    "HeatMap",
    "Point",
    "write_front",
    "write_heat_map",
    "write_html",
    "write_png",
]
