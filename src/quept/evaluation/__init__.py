"""How well a model predicts text."""

from quept.evaluation.perplexity import Perplexity, perplexity

__all__ = ["Perplexity", "perplexity"]
