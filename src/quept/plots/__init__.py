"""Plots as PNG images and as self-contained web pages: quality against bits and against bytes, and sensitivities."""

from quept.plots.curve import Curve, Point
from quept.plots.drawing import require_matplotlib, write_plot
from quept.plots.front import Front, FrontPoint
from quept.plots.heat import HeatMap

__all__ = ["Curve", "Front", "FrontPoint", "HeatMap", "Point", "require_matplotlib", "write_plot"]
