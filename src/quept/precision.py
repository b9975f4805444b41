"""Choosing the bit-widths a model runs at, while it runs.

`set_precision` sets a model's default, which all threads see; a forward pass that has begun ends at the precision that
it began with. `at_precision` holds in its own thread or asyncio task alone: one model runs at several precisions at
once.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from quept.attention import install
from quept.config import FULL, Activations, PlannedBits, Precision, PrecisionPlan
from quept.errors import InvalidInput
from quept.layers import AttentionOperands, ElasticLinear, WeightCache
from quept.layers.attention import OperandSetting
from quept.layers.cache import Key, Sized
from quept.layers.keyvalues import KeyValues
from quept.layers.setting import Adjustable, change, enter_pass, leave_pass, scope

LOADED = "quept_parts"  # the attribute under which a loaded model keeps its parts

_AHEAD = ThreadPoolExecutor(1, "quept-prefetch")  # one, so that what was asked for first comes first
_SWITCHING = Lock()  # defaults are changed, and read for a pass, all together

PrecisionLike = int | str | Precision | PrecisionPlan | Mapping[str, PlannedBits] | None


class Parts(NamedTuple):
    """The parts of a model that run at a setting, by module path."""

    linears: dict[str, ElasticLinear]
    key_values: dict[str, KeyValues]
    operands: dict[str, AttentionOperands]

    @classmethod
    def of(cls, model: nn.Module) -> "Parts":
        """Return the parts of a model; those of a loaded one were looked up once."""
        known: Parts | None = getattr(model, LOADED, None)
        return known or cls(elastic_linears(model), key_values(model), attention_operands(model))

    def all(self) -> Iterator[Adjustable[Any]]:
        """Yield all parts."""
        for parts in self:
            yield from parts.values()

    def settings(self, precision: PrecisionLike, strict: bool = True) -> dict[Adjustable[Any], Any]:
        """Return the setting of each part that a precision names; raises `InvalidInput` as `set_precision` does."""
        assigned = _assigned(precision, {**self.linears, **self.operands}, self.key_values, strict)
        settings: dict[Adjustable[Any], Any] = {
            layer: layer.setting_at(bits, activation_bits)
            for layer, bits, activation_bits in _chosen(self.linears, assigned)
        }
        for path, planned in assigned.items():
            if path in self.key_values:
                settings[self.key_values[path]] = _kept_width(planned)
            elif path in self.operands:
                settings[self.operands[path]] = OperandSetting(_operand_bits(self.operands[path], planned))
        return settings


def elastic_linears(model: nn.Module) -> dict[str, ElasticLinear]:
    """Return the elastic layers of a model by module path; raises `InvalidInput` if it has none."""
    layers = {module.path: module for module in model.modules() if isinstance(module, ElasticLinear)}
    if not layers:
        raise InvalidInput(
            f"This {type(model).__name__} has no elastic layers; load one that quept.calibrate wrote, with "
            "quept.load(directory)."
        )
    return layers


def key_values(model: nn.Module) -> dict[str, KeyValues]:
    """Return the quantization of keys and values by the attention's module path; empty for a model without."""
    return {module.path: module for module in model.modules() if isinstance(module, KeyValues)}


def attention_operands(model: nn.Module) -> dict[str, AttentionOperands]:
    """Return the quantization of attentions' operands by module path; empty where they are not rounded."""
    return {module.path: module for module in model.modules() if isinstance(module, AttentionOperands)}


def master_name(model: nn.Module) -> str:
    """Name what runs where no bits are set: `full precision`, or the master of a store, `8-bit master`."""
    stored = {layer.master_bits for layer in elastic_linears(model).values() if layer.store is not None}
    return f"{max(bits for bits in stored if bits)}-bit master" if stored else "full precision"


def set_precision(model: nn.Module, precision: PrecisionLike, *, strict: bool = True) -> None:
    """Run `model` at a bit-width, by a plan, or (None) at full precision, from the next forward pass on.

    Bits are a number, for weights and for the activations that were calibrated with them, or say what they are of:
    `"w4a8"`, `"w4a4kv4"`, `"kv4"`. Parts that are not named stay as they are, and so does the key-value cache of a
    generation in progress. All threads see the change, unless they are in `at_precision`; within `at_precision`, it
    holds until that ends. Raises `InvalidInput`, with the model untouched, for bits that were not calibrated and,
    unless `strict` is False, for a plan with entries that name nothing in the model (see `PrecisionPlan.unmatched`).
    """
    settings = Parts.of(model).settings(precision, strict)
    _install(model, settings)
    with _SWITCHING:
        change(settings)


def precision_of(model: nn.Module) -> PrecisionPlan:
    """Return the plan in force in the thread or asyncio task that asks."""
    linears, attentions, operands = Parts.of(model)
    plan: dict[str, PlannedBits] = {path: _planned(layer) for path, layer in linears.items()}
    plan |= {path: each.bits for path, each in attentions.items()}
    return PrecisionPlan(plan | {path: each.bits for path, each in operands.items()})


@contextmanager
def at_precision(model: nn.Module, precision: PrecisionLike) -> Iterator[None]:
    """Run the enclosed code at `precision`, in this thread or asyncio task alone; see `set_precision` for the values.

    Other threads run at theirs meanwhile. Threads that begin within start at the model's default, asyncio tasks at this
    precision.
    """
    parts = Parts.of(model)
    settings = parts.settings(precision)
    _install(model, settings)
    with scope({part: part.setting for part in parts.all()} | settings):
        yield


@contextmanager
def rounded_to_nearest(model: nn.Module, precision: PrecisionLike) -> Iterator[None]:
    """Run the enclosed code with plain rounding to nearest, the baseline, at the same granularity, in this thread
    alone.

    Parts that `precision` does not name run at full precision; keys and values are quantized as ever.
    """
    parts = Parts.of(model)
    settings = parts.settings(precision)
    _install(model, settings)
    for layer in parts.linears.values():
        given = settings.get(layer)
        settings[layer] = layer.nearest_at(None, None) if given is None else layer.nearest_at(*given[:2])
    for each in parts.operands.values():
        settings[each] = settings.get(each, OperandSetting(None))._replace(unclipped=True)
    with scope({part: part.setting for part in parts.all()} | settings):
        yield


def prefetch(model: nn.Module, precision: PrecisionLike) -> "Future[int]":
    """Derive, beside whatever else runs, the weights that `precision` needs, so that a switch to it costs nothing.

    Weights that are resident and not in force make room; where room is short, those left out are derived when they are
    first used. The result is how many linears have their weight resident now. Raises as `set_precision` does.
    """
    parts = Parts.of(model)
    wanted = [(part, setting) for part, setting in parts.settings(precision).items() if isinstance(part, ElasticLinear)]
    in_force = {key for key, _ in _in_force(model)}
    cache = next(iter(parts.linears.values())).weight_cache

    def derive() -> int:
        forms = [layer.resident_form(setting) for layer, setting in wanted]
        return sum(cache.prefetch(*form, in_force) for form in forms if cache is not None and form is not None)

    return _AHEAD.submit(derive)


def make_resident(model: nn.Module) -> int:
    """Derive the weights in force that are not resident, instead of at their first use, as far as there is room.

    Returns the bytes of all weights in force that are derived.
    """
    cache = next(iter(Parts.of(model).linears.values())).weight_cache
    return 0 if cache is None else sum(cache.get(*form).nbytes for form in _in_force(model))


def _in_force(model: nn.Module) -> Iterator[tuple[Key, Callable[[int], Sized]]]:
    """Yield what the next forward pass needs resident, and what derives it."""
    for layer in Parts.of(model).linears.values():
        form = layer.resident_form(layer.setting)
        if form is not None:
            yield form


def keep_weights(model: nn.Module, budget: int | None) -> WeightCache:
    """Keep derived weights of a model between forward passes within `budget` bytes (None: no limit)."""
    cache = WeightCache(budget)
    if getattr(model, LOADED, None) is None:
        model.register_forward_pre_hook(_enter)
        model.register_forward_hook(_leave, always_call=True)
    setattr(model, LOADED, None)
    setattr(model, LOADED, Parts.of(model))
    for layer in elastic_linears(model).values():
        layer.weight_cache = cache
    return cache


def _enter(model: nn.Module, args: Any) -> None:
    """Begin a forward pass: what it runs at does not change any more."""
    if not torch.compiler.is_compiling():
        with _SWITCHING:
            settings = {part: part.default for part in Parts.of(model).all()}
        enter_pass(settings)


def _leave(model: nn.Module, args: Any, output: Any) -> None:
    if not torch.compiler.is_compiling():
        leave_pass()


def _install(model: nn.Module, settings: Mapping[Adjustable[Any], Any]) -> None:
    """Let attention run through its parts where any of these settings asks for that."""
    bits = [setting for part, setting in settings.items() if isinstance(part, KeyValues)]
    bits += [setting.bits for part, setting in settings.items() if isinstance(part, AttentionOperands)]
    if any(each is not None for each in bits):
        install(cast(Any, model).config)  # again, where the attention implementation was changed in the meantime


def _assigned(
    precision: PrecisionLike, linears: Mapping[str, object], attentions: Mapping[str, object], strict: bool = True
) -> dict[str, PlannedBits]:
    """The width that each part named by `precision` gets, by path."""
    if isinstance(precision, PrecisionPlan):
        plan = precision
    else:
        plan = PrecisionPlan(precision if isinstance(precision, Mapping) else {"*": Precision.parse(precision)})
        strict = strict and isinstance(precision, Mapping)
    if strict and (unknown := plan.unmatched([*linears, *attentions])):
        raise InvalidInput(
            f"The plan names layers that the model does not have: {unknown[:5]}; it has for example "
            f"{sorted(linears)[:3]}. Patterns are written with *, as in 'model.layers.0.*'."
        )
    return plan.assigned(linears, attentions)


def _chosen(
    layers: Mapping[str, ElasticLinear], assigned: Mapping[str, PlannedBits]
) -> list[tuple[ElasticLinear, int | None, int | None]]:
    """Each layer that is assigned a width, and the widths of its weights and inputs."""
    known: dict[tuple[int, int, type, Any], tuple[int | None, int | None]] = {}
    chosen = []
    for path, planned in assigned.items():
        layer = layers.get(path)
        if layer is None:
            continue
        # Layers share a few settings: what a width means to one, it means to all of them.
        written = planned if isinstance(planned, int | str) else Precision.parse(planned)
        key = id(layer.spec), id(None if layer.input is None else layer.input.spec), type(written), written
        if key not in known:
            known[key] = _bits_of(layer, written)
        chosen.append((layer, *known[key]))
    return chosen


def _bits_of(layer: ElasticLinear, planned: int | str | Precision | None) -> tuple[int | None, int | None]:
    """The widths of a layer's weights and inputs that a plan's entry means; None is full precision."""
    widths = Precision.parse(planned)
    if widths.weights is None and widths.activations is None:
        raise InvalidInput(f"The plan gives the linear {layer.path} the width {widths}, which is of keys and values.")
    calibrated = Activations() if layer.input is None else layer.input.spec
    if layer.spec.fixed:
        (only,) = layer.spec.groups.bits
        given = widths.weights if widths.activations is None else widths.activations
        return None if widths.weights in (None, FULL) else only, calibrated.bits_for(None if given == FULL else given)
    bits = None if widths.weights in (None, FULL) else widths.weights
    if bits is not None:
        layer.spec.groups.index(bits)
    return bits, _activation_width(calibrated, widths)


def _activation_width(calibrated: Activations, widths: Precision) -> int | None:
    """Return the bit-width of activations that is meant; None is full precision."""
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


def _operand_bits(operands: AttentionOperands, planned: PlannedBits) -> int | None:
    """Return the bit-width of an attention's operands that a plan's entry means; None is full precision."""
    return _activation_width(operands.spec, Precision.parse(planned))


def _kept_width(planned: PlannedBits) -> int | None:
    """The width of keys and values that a plan's entry for an attention means; None is full precision."""
    widths = Precision.parse(planned)
    bits = widths.weights if widths.keys_values is None else widths.keys_values
    return None if bits == FULL else bits


def _planned(layer: ElasticLinear) -> PlannedBits:
    """The plan's entry that means the widths a layer runs at."""
    bits, activation_bits = layer.bits, layer.activation_bits
    if bits is None and activation_bits is None:
        return None
    if bits is not None and _bits_of(layer, bits) == (bits, activation_bits):
        return bits
    return str(Precision(bits or FULL, activation_bits or FULL))
