"""Measuring a model at each of its widths."""

from quept.evaluation.perplexity import Perplexity, perplexity
from quept.evaluation.widths import Evaluation, WidthResult, evaluate_widths

__all__ = ["Evaluation", "Perplexity", "WidthResult", "evaluate_widths", "perplexity"]
