"""Calibration: the method from captured inputs to a finished artifact."""

from quept.calibration.methods import RoundingMethod, register_rounding_method
from quept.calibration.pipeline import calibrate
from quept.calibration.progress import Progress, Report

__all__ = ["Progress", "Report", "RoundingMethod", "calibrate", "register_rounding_method"]
