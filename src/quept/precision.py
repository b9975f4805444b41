"""Choosing the width a model runs at, while it runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from quept.architectures import architecture_of
from quept.errors import InvalidInput
from quept.nn import DerivedWeights, ElasticLinear, replace_linears
from quept.plan import PrecisionPlan
from quept.spec import WeightSpec

Precision = int | PrecisionPlan | Mapping[str, int | None] | None


def elastic_linears(model: nn.Module) -> dict[str, ElasticLinear]:
    """The elastic layers of a model by module path; `InvalidInput` if it has none."""
    layers = {module.path: module for module in model.modules() if isinstance(module, ElasticLinear)}
    if not layers:
        raise InvalidInput(
            f"This {type(model).__name__} has no elastic layers; load one that quept.calibrate wrote, with "
            "quept.load(directory)."
        )
    return layers


def set_precision(model: nn.Module, precision: Precision) -> None:
    """Run `model` at a width, by a plan, or (None) at full precision, from the next forward pass on.

    Nothing else changes: the key-value cache of a generation in progress stays valid. Raises `InvalidInput`, with
    the model untouched, for a width that was not calibrated and for a plan that names unknown layers.
    """
    layers = elastic_linears(model)
    plan = _as_plan(precision, layers)
    if unknown := sorted(map(str, set(plan.bits) - set(layers))):
        raise InvalidInput(
            f"The plan names layers that the model does not have: {unknown[:5]}; it has for example "
            f"{sorted(layers)[:3]}."
        )
    for path, bits in plan.bits.items():
        if bits is not None:
            layers[path].spec.groups.index(_width(bits))
    for path, bits in plan.bits.items():
        layers[path].bits = bits


def precision_of(model: nn.Module) -> PrecisionPlan:
    """The plan in force."""
    return PrecisionPlan({path: layer.bits for path, layer in elastic_linears(model).items()})


@contextmanager
def at_precision(model: nn.Module, precision: Precision) -> Iterator[None]:
    """Run the enclosed code at `precision`; what was in force before is restored, also after an exception."""
    before = precision_of(model)
    set_precision(model, precision)
    try:
        yield
    finally:
        set_precision(model, before)


@contextmanager
def rounded_to_nearest(model: nn.Module, bits: int) -> Iterator[None]:
    """Run the enclosed code with plain rounding to nearest at `bits`: the baseline, at the same granularity."""
    layers = elastic_linears(model).values()
    for layer in layers:
        layer.spec.groups.index(bits)
    try:
        for layer in layers:
            layer.override = layer.nearest(bits)
        yield
    finally:
        for layer in layers:
            layer.override = None


def make_elastic(model: Any, spec: WeightSpec) -> None:
    """Replace the linears of a model's blocks by elastic ones, uncalibrated, in place."""
    architecture = architecture_of(model.config.model_type)
    for index, block in enumerate(architecture.block_list(model)):
        replace_linears(block, architecture.block_path(index), architecture.linears, spec)


def keep_derived_weights(model: nn.Module, budget: int | None) -> DerivedWeights:
    """Keep derived weights between forward passes within `budget` bytes (None: no limit)."""
    residency = DerivedWeights(budget)
    for layer in elastic_linears(model).values():
        layer.residency = residency
    return residency


def _as_plan(precision: Precision, layers: Mapping[str, ElasticLinear]) -> PrecisionPlan:
    if isinstance(precision, PrecisionPlan):
        return precision
    if isinstance(precision, Mapping):
        return PrecisionPlan(precision)
    return PrecisionPlan.uniform(layers, None if precision is None else _width(precision))


def _width(precision: int) -> int:
    """Refuse what only looks like a width: True, 4.0 and "4" would fail much later, in the forward pass."""
    if isinstance(precision, bool) or not isinstance(precision, int):
        raise InvalidInput(f"precision {precision!r} is neither a width, a plan nor None (full precision).")
    return precision
