"""Choosing the bit-widths a model runs at, while it runs."""

from quept.precision.assignment import PrecisionLike
from quept.precision.parts import Parts, attention_operands, elastic_linears, key_values, master_name
from quept.precision.residency import keep_weights, make_resident, prefetch
from quept.precision.switching import at_precision, precision_of, rounded_to_nearest, set_precision

__all__ = [
    "Parts",
    "PrecisionLike",
    "at_precision",
    "attention_operands",
    "elastic_linears",
    "keep_weights",
    "key_values",
    "make_resident",
    "master_name",
    "precision_of",
    "prefetch",
    "rounded_to_nearest",
    "set_precision",
]
