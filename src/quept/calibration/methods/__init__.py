"""Methods: each of the things that calibration learns about how weights are rounded is one file with one interface.

A rounding method of your own is one class: derive it from `RoundingMethod`, name it with `register_rounding_method`,
and put that name in a recipe's `rounding_method`. See docs/adding-a-rounding-method.md.
"""

from quept.calibration.methods.adaround import AdaRound
from quept.calibration.methods.base import Draft, Method, ParameterGroup, RoundingMethod, Start, Weight
from quept.calibration.methods.clipping import Clipping
from quept.calibration.methods.learned_rounding import LearnedRounding
from quept.calibration.methods.low_rank import LowRank
from quept.errors import InvalidInput

ROUNDING_METHODS: dict[str, type[RoundingMethod]] = {"offsets": LearnedRounding}


def register_rounding_method(name: str, method: type[RoundingMethod]) -> None:
    """Let recipes name a rounding method; raises `InvalidInput` for a name that is taken or another kind of class."""
    if not (isinstance(method, type) and issubclass(method, RoundingMethod)):
        raise InvalidInput(f"{method!r} is no rounding method; derive a class from quept.calibration.RoundingMethod.")
    if ROUNDING_METHODS.get(name, method) is not method:
        raise InvalidInput(f"The rounding method {name!r} is registered already; choose another name.")
    ROUNDING_METHODS[name] = method


def rounding_method(name: str) -> type[RoundingMethod]:
    """Return the class of a rounding method; raises `InvalidInput` for a name that is not registered."""
    if name not in ROUNDING_METHODS:
        raise InvalidInput(
            f"The recipe's rounding_method {name!r} is not known; choose one of {', '.join(sorted(ROUNDING_METHODS))}, "
            "or register it with quept.calibration.register_rounding_method."
        )
    return ROUNDING_METHODS[name]


def methods_for(weight: Weight) -> list[Method]:
    """Return the methods that the settings of a weight ask for, in the order in which they act."""
    spec = weight.spec
    methods: list[Method] = []
    if spec.adapter.kind != "none":
        methods.append(AdaRound(weight) if spec.adapter.entry == "rounding" else LowRank(weight))
    methods.append(Clipping(weight))
    if spec.learned_rounding:
        methods.append(rounding_method(spec.rounding_method)(weight))
    return methods


__all__ = [
    "AdaRound",
    "Clipping",
    "Draft",
    "LearnedRounding",
    "LowRank",
    "Method",
    "ParameterGroup",
    "RoundingMethod",
    "Start",
    "methods_for",
    "register_rounding_method",
    "rounding_method",
]
