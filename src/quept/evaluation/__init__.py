"""Measuring a model: perplexity, accuracy, divergence and speed, at each of its precisions."""

from quept.evaluation.accuracy import accuracy, classifier, compare
from quept.evaluation.accuracy_precisions import AccuracyEvaluation, PrecisionAccuracy, evaluate_accuracy
from quept.evaluation.counts import Accuracy, Comparison
from quept.evaluation.divergence import Divergence, divergence
from quept.evaluation.perplexity import Perplexity, perplexity
from quept.evaluation.precisions import Evaluation, PrecisionResult, evaluate_precisions

__all__ = [
    "Accuracy",
    "AccuracyEvaluation",
    "Comparison",
    "Divergence",
    "Evaluation",
    "Perplexity",
    "PrecisionAccuracy",
    "PrecisionResult",
    "accuracy",
    "classifier",
    "compare",
    "divergence",
    "evaluate_accuracy",
    "evaluate_precisions",
    "perplexity",
]
