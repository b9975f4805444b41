"""quept: calibrate a Transformer once, run it at every bit-width from 2 to 8.

The public names are imported on first use, so that the command line answers `--help` at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from quept.calibration import Progress, Report
    from quept.commands.allocate import allocate
    from quept.commands.bench import bench
    from quept.commands.calibrate import calibrate
    from quept.commands.demo import demo
    from quept.commands.evaluate import evaluate
    from quept.commands.evaluator import PlanEvaluator
    from quept.commands.generate import generate
    from quept.commands.info import info
    from quept.commands.plan_front import plan_front
    from quept.commands.sensitivity import measure_sensitivity, sensitivity
    from quept.config import Precision, PrecisionPlan, Recipe
    from quept.errors import CalibrationFailed, CorruptArtifact, InvalidInput, QueptError
    from quept.evaluation import evaluate_precisions
    from quept.evaluation.perplexity import perplexity
    from quept.generation import KeyValueCache
    from quept.models import register_architecture
    from quept.precision import at_precision, precision_of, prefetch, set_precision
    from quept.recipes import load_recipe
    from quept.storage import load, save

_HOME = {
    "commands": (
        "PlanEvaluator",
        "allocate",
        "bench",
        "calibrate",
        "demo",
        "evaluate",
        "generate",
        "info",
        "measure_sensitivity",
        "plan_front",
        "sensitivity",
    ),
    "config": ("PrecisionPlan", "Recipe", "Precision"),
    "calibration": ("Progress", "Report"),
    "errors": ("CalibrationFailed", "CorruptArtifact", "InvalidInput", "QueptError"),
    "evaluation": ("evaluate_precisions", "perplexity"),
    "generation": ("KeyValueCache",),
    "models": ("register_architecture",),
    "precision": ("at_precision", "precision_of", "prefetch", "set_precision"),
    "recipes": ("load_recipe",),
    "storage": ("load", "save"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "CalibrationFailed",
    "CorruptArtifact",
    "InvalidInput",
    "KeyValueCache",
    "PlanEvaluator",
    "Precision",
    "PrecisionPlan",
    "Progress",
    "QueptError",
    "Recipe",
    "Report",
    "allocate",
    "at_precision",
    "bench",
    "calibrate",
    "demo",
    "evaluate",
    "evaluate_precisions",
    "generate",
    "info",
    "load",
    "load_recipe",
    "measure_sensitivity",
    "perplexity",
    "plan_front",
    "precision_of",
    "prefetch",
    "register_architecture",
    "save",
    "sensitivity",
    "set_precision",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
