"""quept: calibrate a Transformer once, run it at every bit-width from 2 to 8."""

__version__ = "0.1.0"

from quept.calibration import Progress, Report, calibrate
from quept.errors import CalibrationFailed, CorruptArtifact, InvalidInput, QueptError
from quept.plan import PrecisionPlan
from quept.precision import at_precision, precision_of, set_precision
from quept.recipes import load_recipe
from quept.spec import Recipe
from quept.storage import load, save

__all__ = [
    "CalibrationFailed",
    "CorruptArtifact",
    "InvalidInput",
    "PrecisionPlan",
    "Progress",
    "QueptError",
    "Recipe",
    "Report",
    "at_precision",
    "calibrate",
    "load",
    "load_recipe",
    "precision_of",
    "save",
    "set_precision",
]
