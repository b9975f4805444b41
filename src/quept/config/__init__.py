"""All settings as frozen values, and all rules about them: a value that exists is a value that is allowed."""

from quept.config.activations import Activations
from quept.config.base import Value, describe
from quept.config.bits import FULL, MAX_BITS, MIN_BITS, BitGroups, Bits, covering, parse_bits
from quept.config.patterns import check_names, is_pattern, matches
from quept.config.plan import MOST_ENTRIES, PlannedBits, Precision, PrecisionPlan, parse_precisions
from quept.config.recipe import Data, Recipe
from quept.config.reconstruction import Loss, Merging, Mixing, Reconstruction
from quept.config.rules import Rule
from quept.config.transforms import Reparameterization, Rotation, Smoothing
from quept.config.weight import LARGEST_RANK, Adapter, AdapterEntry, AdapterKind, Granularity, Store, WeightSpec

__all__ = [
    "FULL",
    "LARGEST_RANK",
    "MAX_BITS",
    "MIN_BITS",
    "MOST_ENTRIES",
    "Activations",
    "Adapter",
    "AdapterEntry",
    "AdapterKind",
    "BitGroups",
    "Bits",
    "Data",
    "Granularity",
    "Loss",
    "Merging",
    "Mixing",
    "PlannedBits",
    "Precision",
    "PrecisionPlan",
    "Recipe",
    "Reconstruction",
    "Reparameterization",
    "Rotation",
    "Rule",
    "Smoothing",
    "Store",
    "Value",
    "WeightSpec",
    "check_names",
    "covering",
    "describe",
    "is_pattern",
    "matches",
    "parse_bits",
    "parse_precisions",
]
