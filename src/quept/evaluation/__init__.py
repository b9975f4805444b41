"""Measuring a model at each of its widths."""

from quept.evaluation.divergence import Divergence, divergence
from quept.evaluation.perplexity import Perplexity, perplexity
from quept.evaluation.widths import Evaluation, WidthResult, evaluate_widths

__all__ = ["Divergence", "Evaluation", "Perplexity", "WidthResult", "divergence", "evaluate_widths", "perplexity"]
