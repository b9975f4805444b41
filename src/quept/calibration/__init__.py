"""Calibration: the method from captured inputs to a finished artifact."""

from quept.calibration.pipeline import calibrate
from quept.calibration.progress import Progress, Report

__all__ = ["Progress", "Report", "calibrate"]
