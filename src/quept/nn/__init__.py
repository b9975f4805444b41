"""Modules that run at more than one width."""

from quept.nn.baseline import nearest
from quept.nn.elastic import ElasticLinear
from quept.nn.inputs import ElasticInput
from quept.nn.replace import replace_linears
from quept.nn.residency import DerivedWeights
from quept.nn.tensors import learned_names, stored_tensors

__all__ = [
    "DerivedWeights",
    "ElasticInput",
    "ElasticLinear",
    "learned_names",
    "nearest",
    "replace_linears",
    "stored_tensors",
]
