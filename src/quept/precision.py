"""Choosing the widths a model runs at, while it runs."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from torch import nn

from quept.architectures.attention import install
from quept.errors import InvalidInput
from quept.nn import AttentionProducts, DerivedWeights, ElasticLinear, nearest
from quept.nn.keyvalues import KeyValues
from quept.plan import PlannedWidth, PrecisionPlan, Widths
from quept.spec import Activations
from quept.widths import FULL

Precision = int | str | Widths | PrecisionPlan | Mapping[str, PlannedWidth] | None


def elastic_linears(model: nn.Module) -> dict[str, ElasticLinear]:
    """The elastic layers of a model by module path; `InvalidInput` if it has none."""
    layers = {module.path: module for module in model.modules() if isinstance(module, ElasticLinear)}
    if not layers:
        raise InvalidInput(
            f"This {type(model).__name__} has no elastic layers; load one that quept.calibrate wrote, with "
            "quept.load(directory)."
        )
    return layers


def key_values(model: nn.Module) -> dict[str, KeyValues]:
    """What decides on the width of keys and values, by the attention's module path; empty for a model without."""
    return {module.path: module for module in model.modules() if isinstance(module, KeyValues)}


def attention_products(model: nn.Module) -> dict[str, AttentionProducts]:
    """What decides on the width of attention's operands, by its module path; empty where they are not rounded."""
    return {module.path: module for module in model.modules() if isinstance(module, AttentionProducts)}


def master_name(model: nn.Module) -> str:
    """What runs where no width is set: `full precision`, or of a model from a store its master, `8-bit master`."""
    stored = {layer.master_bits for layer in elastic_linears(model).values() if layer.store is not None}
    return f"{max(bits for bits in stored if bits)}-bit master" if stored else "full precision"


def set_precision(model: nn.Module, precision: Precision, *, strict: bool = True) -> None:
    """Run `model` at a width, by a plan, or (None) at full precision, from the next forward pass on.

    A width is a number, for weights and for the activations that were calibrated with them, or names what it is of:
    `"w4a8"`, `"w4a4kv4"`, `"kv4"`. What is not named stays as it is, and so does the key-value cache of a generation in
    progress. Raises `InvalidInput`, with the model untouched, for a width that was not calibrated and, unless `strict`
    is False, for a plan with entries that name nothing in the model (see `PrecisionPlan.unmatched`).
    """
    layers, attentions, products = elastic_linears(model), key_values(model), attention_products(model)
    assigned = _assigned(precision, {**layers, **products}, attentions, strict)
    chosen = {path: _widths_of(layers[path], planned) for path, planned in assigned.items() if path in layers}
    kept = {path: _kept_width(planned) for path, planned in assigned.items() if path in attentions}
    operands = {path: _width_of(products[path], planned) for path, planned in assigned.items() if path in products}
    if any(bits is not None for bits in (*kept.values(), *operands.values())):
        install(cast(Any, model).config)  # again, where the attention implementation was changed in the meantime
    for path, (bits, activation_bits) in chosen.items():
        layers[path].bits, layers[path].activation_bits = bits, activation_bits
    for path, bits in kept.items():
        attentions[path].bits = bits
    for path, bits in operands.items():
        products[path].bits = bits


def precision_of(model: nn.Module) -> PrecisionPlan:
    """The plan in force."""
    linears = {path: _planned(layer) for path, layer in elastic_linears(model).items()}
    kept = {path: each.bits for path, each in key_values(model).items()}
    return PrecisionPlan({**linears, **kept, **{path: each.bits for path, each in attention_products(model).items()}})


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
def rounded_to_nearest(model: nn.Module, precision: Precision) -> Iterator[None]:
    """Run the enclosed code with plain rounding to nearest: the baseline, at the same granularity.

    Linears that `precision` does not name run at full precision.
    """
    layers, attentions, products = elastic_linears(model), key_values(model), attention_products(model)
    assigned = _assigned(precision, {**layers, **products}, attentions)
    with ExitStack() as stack:
        stack.enter_context(at_precision(model, {path: assigned[path] for path in attentions if path in assigned}))
        for path, layer in layers.items():
            bits, activation_bits = _widths_of(layer, assigned[path]) if path in assigned else (None, None)
            stack.enter_context(nearest([layer], bits, activation_bits))
        for path, each in products.items():
            width = _width_of(each, assigned[path]) if path in assigned else None
            stack.enter_context(nearest([], None, width, [each]))
        yield


def keep_derived_weights(model: nn.Module, budget: int | None) -> DerivedWeights:
    """Keep derived weights between forward passes within `budget` bytes (None: no limit)."""
    residency = DerivedWeights(budget)
    for layer in elastic_linears(model).values():
        layer.residency = residency
    return residency


def _assigned(
    precision: Precision, linears: Mapping[str, object], attentions: Mapping[str, object], strict: bool = True
) -> dict[str, PlannedWidth]:
    """The width that each part named by `precision` gets, by path."""
    if isinstance(precision, PrecisionPlan):
        plan = precision
    else:
        plan = PrecisionPlan(precision if isinstance(precision, Mapping) else {"*": Widths.parse(precision)})
        strict = strict and isinstance(precision, Mapping)
    if strict and (unknown := plan.unmatched([*linears, *attentions])):
        raise InvalidInput(
            f"The plan names layers that the model does not have: {unknown[:5]}; it has for example "
            f"{sorted(linears)[:3]}. Patterns are written with *, as in 'model.layers.0.*'."
        )
    return plan.assigned(linears, attentions)


def _widths_of(layer: ElasticLinear, planned: int | str | Widths | None) -> tuple[int | None, int | None]:
    """The widths of a layer's weights and inputs that a plan's entry means; None is full precision."""
    widths = Widths.parse(planned)
    if widths.weights is None and widths.activations is None:
        raise InvalidInput(f"The plan gives the linear {layer.path} the width {widths}, which is of keys and values.")
    calibrated = Activations() if layer.input is None else layer.input.spec
    if layer.spec.fixed:
        (only,) = layer.spec.groups.bits
        bits = None if widths.weights in (None, FULL) else only
        activated = widths.weights not in (None, FULL) if widths.activations is None else widths.activations != FULL
        return bits, calibrated.beside(only) if activated else None
    bits = None if widths.weights in (None, FULL) else widths.weights
    if bits is not None:
        layer.spec.groups.index(bits)
    return bits, _activation_width(calibrated, widths)


def _activation_width(calibrated: Activations, widths: Widths) -> int | None:
    """The width of activations that is meant; None is full precision."""
    if widths.activations is None:
        return calibrated.beside(None if widths.weights == FULL else widths.weights)
    if widths.activations == FULL:
        return None
    if widths.activations not in calibrated.bits:
        raise InvalidInput(
            f"Activations of {widths.activations} bits are not in the calibrated set {list(calibrated.bits)}"
            + (
                "; choose one of these."
                if calibrated.bits
                else ": calibrate with a recipe that rounds them, such as weight-activation or vision."
            )
        )
    return widths.activations


def _width_of(products: AttentionProducts, planned: PlannedWidth) -> int | None:
    """The width of an attention's operands that a plan's entry means; None is full precision."""
    return _activation_width(products.spec, Widths.parse(planned))


def _kept_width(planned: PlannedWidth) -> int | None:
    """The width of keys and values that a plan's entry for an attention means; None is full precision."""
    widths = Widths.parse(planned)
    bits = widths.weights if widths.keys_values is None else widths.keys_values
    return None if bits == FULL else bits


def _planned(layer: ElasticLinear) -> PlannedWidth:
    """The plan's entry that means the widths a layer runs at."""
    bits, activation_bits = layer.bits, layer.activation_bits
    if bits is None and activation_bits is None:
        return None
    if bits is not None and _widths_of(layer, bits) == (bits, activation_bits):
        return bits
    return str(Widths(bits or FULL, activation_bits or FULL))
