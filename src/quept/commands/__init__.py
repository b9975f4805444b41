"""The commands as functions: each takes what the command line takes, and returns what it shows."""

from quept.commands.allocate import FoundPlan, PlanOptions, allocate, open_problem, table_evaluator
from quept.commands.bench import Benchmark, Workload, bench
from quept.commands.calibrate import CalibrationOptions, calibrate
from quept.commands.demo import PLOTS, Demonstrated, demo, demonstration
from quept.commands.evaluate import evaluate
from quept.commands.evaluator import PlanEvaluator
from quept.commands.generate import Generation, generate, open_generator
from quept.commands.info import ArtifactInfo, info
from quept.commands.plan_front import PlanFront, plan_front
from quept.commands.sensitivity import measure_sensitivity, open_table, sensitivity

__all__ = [
    "PLOTS",
    "ArtifactInfo",
    "Benchmark",
    "CalibrationOptions",
    "Demonstrated",
    "FoundPlan",
    "Generation",
    "PlanEvaluator",
    "PlanFront",
    "PlanOptions",
    "Workload",
    "allocate",
    "bench",
    "calibrate",
    "demo",
    "demonstration",
    "evaluate",
    "generate",
    "info",
    "measure_sensitivity",
    "open_generator",
    "open_problem",
    "open_table",
    "plan_front",
    "sensitivity",
    "table_evaluator",
]
