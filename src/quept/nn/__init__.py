"""Modules that run at more than one width."""

from quept.nn.baseline import nearest, quantizers_of
from quept.nn.elastic import ElasticLinear
from quept.nn.execution import Execution
from quept.nn.inputs import ElasticInput
from quept.nn.products import AttentionProducts
from quept.nn.quantizers import Quantizer
from quept.nn.replace import replace_linears
from quept.nn.residency import DerivedWeights
from quept.nn.tensors import learned_names, stored_tensors

__all__ = [
    "AttentionProducts",
    "DerivedWeights",
    "ElasticInput",
    "ElasticLinear",
    "Execution",
    "Quantizer",
    "learned_names",
    "nearest",
    "quantizers_of",
    "replace_linears",
    "stored_tensors",
]
