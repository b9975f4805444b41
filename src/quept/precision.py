"""Choosing the widths a model runs at, while it runs."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, cast

from torch import nn

from quept.config import FULL, Activations, PlannedWidth, PrecisionPlan, Widths
from quept.errors import InvalidInput
from quept.layers import AttentionOperands, ElasticLinear, WeightCache, nearest
from quept.layers.cache import Key, Sized
from quept.layers.keyvalues import KeyValues
from quept.models.attention import install

LOADED = "quept_parts"  # the attribute under which a loaded model keeps its parts

_AHEAD = ThreadPoolExecutor(1, "quept-prefetch")  # one, so that what was asked for first comes first

Precision = int | str | Widths | PrecisionPlan | Mapping[str, PlannedWidth] | None


class Parts(NamedTuple):
    """What a precision decides on, by module path: linears, attentions' keys and values, attentions' operands."""

    linears: dict[str, ElasticLinear]
    key_values: dict[str, KeyValues]
    products: dict[str, AttentionOperands]

    @classmethod
    def of(cls, model: nn.Module) -> "Parts":
        """The parts of a model; those of a loaded one were looked up once."""
        known: Parts | None = getattr(model, LOADED, None)
        return known or cls(elastic_linears(model), key_values(model), attention_operands(model))


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


def attention_operands(model: nn.Module) -> dict[str, AttentionOperands]:
    """What decides on the width of attention's operands, by its module path; empty where they are not rounded."""
    return {module.path: module for module in model.modules() if isinstance(module, AttentionOperands)}


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
    layers, attentions, products = Parts.of(model)
    assigned = _assigned(precision, {**layers, **products}, attentions, strict)
    chosen = _chosen(layers, assigned)
    kept = {path: _kept_width(planned) for path, planned in assigned.items() if path in attentions}
    operands = {path: _width_of(products[path], planned) for path, planned in assigned.items() if path in products}
    if any(bits is not None for bits in (*kept.values(), *operands.values())):
        install(cast(Any, model).config)  # again, where the attention implementation was changed in the meantime
    for layer, bits, activation_bits in chosen:
        layer.run_at(bits, activation_bits)
    for path, bits in kept.items():
        attentions[path].bits = bits
    for path, bits in operands.items():
        products[path].bits = bits


def precision_of(model: nn.Module) -> PrecisionPlan:
    """The plan in force."""
    layers, attentions, products = Parts.of(model)
    linears = {path: _planned(layer) for path, layer in layers.items()}
    operands = {path: each.bits for path, each in products.items()}
    return PrecisionPlan({**linears, **{path: each.bits for path, each in attentions.items()}, **operands})


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
    layers, attentions, products = elastic_linears(model), key_values(model), attention_operands(model)
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


def prefetch(model: nn.Module, precision: Precision) -> "Future[int]":
    """Derive, beside whatever else runs, the weights that `precision` needs, so that a switch to it costs nothing.

    What is resident and not in force makes room; where room is short, weights that are left out are derived when they
    are first used. The result is how many linears have their weight resident now. Raises as `set_precision` does.
    """
    layers, attentions, products = Parts.of(model)
    assigned = _assigned(precision, {**layers, **products}, attentions)
    wanted = _chosen(layers, assigned)
    in_force = {key for key, _ in _in_force(model)}
    weight_cache = next(iter(layers.values())).weight_cache

    def derive() -> int:
        forms = [layer.form(bits, activation_bits) for layer, bits, activation_bits in wanted]
        return sum(
            weight_cache.prefetch(*form, in_force) for form in forms if weight_cache is not None and form is not None
        )

    return _AHEAD.submit(derive)


def make_resident(model: nn.Module) -> int:
    """Derive the weights in force that are not resident, instead of at their first use, as far as there is room.

    Returns the bytes of all weights in force that are derived.
    """
    weight_cache = next(iter(Parts.of(model).linears.values())).weight_cache
    return 0 if weight_cache is None else sum(weight_cache.get(*form).nbytes for form in _in_force(model))


def _in_force(model: nn.Module) -> Iterator[tuple[Key, Callable[[int], Sized]]]:
    """What the next forward pass needs resident, and how it is made."""
    for layer in Parts.of(model).linears.values():
        form = layer.form(layer.bits, layer.activation_bits)
        if form is not None:
            yield form


def keep_weights(model: nn.Module, budget: int | None) -> WeightCache:
    """Keep derived weights between forward passes within `budget` bytes (None: no limit)."""
    weight_cache = WeightCache(budget)
    setattr(model, LOADED, None)
    setattr(model, LOADED, Parts.of(model))
    for layer in elastic_linears(model).values():
        layer.weight_cache = weight_cache
    return weight_cache


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


def _chosen(
    layers: Mapping[str, ElasticLinear], assigned: Mapping[str, PlannedWidth]
) -> list[tuple[ElasticLinear, int | None, int | None]]:
    """Each layer that is assigned a width, and the widths of its weights and inputs."""
    known: dict[tuple[int, int, type, Any], tuple[int | None, int | None]] = {}
    chosen = []
    for path, planned in assigned.items():
        layer = layers.get(path)
        if layer is None:
            continue
        # Layers share a few settings: what a width means to one, it means to all of them.
        written = planned if isinstance(planned, int | str) else Widths.parse(planned)
        key = id(layer.spec), id(None if layer.input is None else layer.input.spec), type(written), written
        if key not in known:
            known[key] = _widths_of(layer, written)
        chosen.append((layer, *known[key]))
    return chosen


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
        return bits, calibrated.bits_for(only) if activated else None
    bits = None if widths.weights in (None, FULL) else widths.weights
    if bits is not None:
        layer.spec.groups.index(bits)
    return bits, _activation_width(calibrated, widths)


def _activation_width(calibrated: Activations, widths: Widths) -> int | None:
    """The width of activations that is meant; None is full precision."""
    if widths.activations is None:
        return calibrated.bits_for(None if widths.weights == FULL else widths.weights)
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


def _width_of(products: AttentionOperands, planned: PlannedWidth) -> int | None:
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
