"""Modules that run at more than one bit-width."""

from quept.layers.attention import AttentionOperands
from quept.layers.baseline import nearest, quantizers_of
from quept.layers.cache import WeightCache
from quept.layers.execution import Execution
from quept.layers.inputs import ElasticInput
from quept.layers.linear import ElasticLinear
from quept.layers.quantizers import Quantizer
from quept.layers.replace import replace_linears
from quept.layers.tensors import learned_names, stored_tensors

__all__ = [
    "AttentionOperands",
    "ElasticInput",
    "ElasticLinear",
    "Execution",
    "Quantizer",
    "WeightCache",
    "learned_names",
    "nearest",
    "quantizers_of",
    "replace_linears",
    "stored_tensors",
]
