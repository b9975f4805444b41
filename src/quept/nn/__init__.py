"""Modules that run at more than one width."""

from quept.nn.elastic import ElasticLinear
from quept.nn.replace import replace_linears
from quept.nn.residency import DerivedWeights

__all__ = ["DerivedWeights", "ElasticLinear", "replace_linears"]
