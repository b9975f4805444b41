"""From a precision, as it is written, to the bits of each part of a model."""

from collections.abc import Mapping
from typing import Any

from quept.config import FULL, Activations, PlannedBits, Precision, PrecisionPlan
from quept.errors import InvalidInput
from quept.layers import AttentionOperands, ElasticLinear

PrecisionLike = int | str | Precision | PrecisionPlan | Mapping[str, PlannedBits] | None


def assigned(
    precision: PrecisionLike, linears: Mapping[str, object], attentions: Mapping[str, object], strict: bool = True
) -> dict[str, PlannedBits]:
    """Return what each part that `precision` names is to run at, by path.

    Raises `InvalidInput` for a plan that names, by its path, a linear whose one bit-width is another and, where it is
    `strict`, for one that names what the model does not have.
    """
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
    for path, planned in plan.bits.items():
        _check_fixed(linears.get(path), planned)
    return plan.assigned(linears, attentions)


def _check_fixed(part: object, planned: PlannedBits) -> None:
    """Raise `InvalidInput` where a plan's entry gives a linear other bits than the only ones that it has."""
    if not isinstance(part, ElasticLinear) or not part.spec.fixed:
        return
    given = Precision.parse(planned).weights
    if given not in (None, FULL, *part.spec.groups.bits):
        raise InvalidInput(
            f"The plan gives {part.path} {given} bits, but it was calibrated for {part.spec.groups.bits[0]} alone; "
            "leave it out of the plan."
        )


def chosen_bits(
    layers: Mapping[str, ElasticLinear], assigned: Mapping[str, PlannedBits]
) -> list[tuple[ElasticLinear, int | None, int | None]]:
    """Return the layers that are assigned something, with the bits of weights and inputs; None is full precision."""
    known: dict[tuple[int, int, type, Any], tuple[int | None, int | None]] = {}
    chosen = []
    for path, planned in assigned.items():
        layer = layers.get(path)
        if layer is None:
            continue
        # Layers share a few settings: bits mean to all of them what they mean to one.
        written = planned if isinstance(planned, int | str) else Precision.parse(planned)
        key = id(layer.spec), id(None if layer.input is None else layer.input.spec), type(written), written
        if key not in known:
            known[key] = _bits_of(layer, written)
        chosen.append((layer, *known[key]))
    return chosen


def _bits_of(layer: ElasticLinear, planned: int | str | Precision | None) -> tuple[int | None, int | None]:
    """Return the bits of a layer's weights and inputs that a plan's entry means; None is full precision."""
    precision = Precision.parse(planned)
    if precision.weights is None and precision.activations is None:
        raise InvalidInput(f"The plan gives the linear {layer.path} {precision}, which is of keys and values.")
    calibrated = Activations() if layer.input is None else layer.input.spec
    if layer.spec.fixed:
        (only,) = layer.spec.groups.bits
        given = precision.weights if precision.activations is None else precision.activations
        return None if precision.weights in (None, FULL) else only, calibrated.bits_for(
            None if given == FULL else given
        )
    bits = None if precision.weights in (None, FULL) else precision.weights
    if bits is not None:
        layer.spec.groups.index(bits)
    return bits, _activation_bits(calibrated, precision)


def _activation_bits(calibrated: Activations, precision: Precision) -> int | None:
    """Return the bit-width of activations that is meant; None is full precision."""
    if precision.activations is None:
        return calibrated.bits_for(None if precision.weights == FULL else precision.weights)
    if precision.activations == FULL:
        return None
    if precision.activations not in calibrated.bits:
        raise InvalidInput(
            f"Activations of {precision.activations} bits are not in the calibrated set {list(calibrated.bits)}"
            + (
                "; choose one of these."
                if calibrated.bits
                else ": calibrate with a recipe that rounds them, such as weight-activation or vision."
            )
        )
    return precision.activations


def operand_bits(operands: AttentionOperands, planned: PlannedBits) -> int | None:
    """Return the bit-width of an attention's operands that a plan's entry means; None is full precision."""
    return _activation_bits(operands.spec, Precision.parse(planned))


def kept_bits(planned: PlannedBits) -> int | None:
    """Return the bits of keys and values that a plan's entry for an attention means; None is full precision."""
    precision = Precision.parse(planned)
    bits = precision.weights if precision.keys_values is None else precision.keys_values
    return None if bits == FULL else bits


def planned_bits(layer: ElasticLinear) -> PlannedBits:
    """Return the plan's entry that means the bits a layer runs at."""
    bits, activation_bits = layer.bits, layer.activation_bits
    if bits is None and activation_bits is None:
        return None
    if bits is not None and _bits_of(layer, bits) == (bits, activation_bits):
        return bits
    return str(Precision(bits or FULL, activation_bits or FULL))
