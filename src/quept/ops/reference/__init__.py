"""All operators, each defined by its reference in PyTorch."""

from quept.ops.reference.integer import finish_product, integer_linear, integer_product, integer_weight
from quept.ops.reference.packed import dequantize, packed_linear, rebuild
from quept.ops.reference.rotation import rotate
from quept.ops.reference.tokens import quantize_tokens

__all__ = [
    "OPERATORS",
    "dequantize",
    "finish_product",
    "integer_linear",
    "integer_product",
    "integer_weight",
    "packed_linear",
    "quantize_tokens",
    "rebuild",
    "rotate",
]

OPERATORS = (
    *(packed_linear, dequantize, rebuild),
    *(integer_linear, integer_weight, integer_product, finish_product),
    *(quantize_tokens, rotate),
)
