"""Measuring a model at each of its widths."""

from quept.evaluation.accuracy import (
    Accuracy,
    AccuracyEvaluation,
    Comparison,
    WidthAccuracy,
    accuracy,
    classifier,
    compare,
    evaluate_accuracy,
)
from quept.evaluation.divergence import Divergence, divergence
from quept.evaluation.perplexity import Perplexity, perplexity
from quept.evaluation.widths import Evaluation, WidthResult, evaluate_widths

__all__ = [
    "Accuracy",
    "AccuracyEvaluation",
    "Comparison",
    "Divergence",
    "Evaluation",
    "Perplexity",
    "WidthAccuracy",
    "WidthResult",
    "accuracy",
    "classifier",
    "compare",
    "divergence",
    "evaluate_accuracy",
    "evaluate_widths",
    "perplexity",
]
