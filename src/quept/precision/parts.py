"""The parts of a model that run at a precision."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from quept.errors import InvalidInput
from quept.layers import AttentionOperands, ElasticLinear
from quept.layers.attention import OperandSetting
from quept.layers.keyvalues import KeyValues
from quept.layers.setting import Adjustable
from quept.precision.assignment import PrecisionLike, assigned, chosen_bits, kept_bits, operand_bits

LOADED = "quept_parts"  # the attribute under which a loaded model keeps its parts


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
        named = assigned(precision, {**self.linears, **self.operands}, self.key_values, strict)
        settings: dict[Adjustable[Any], Any] = {
            layer: layer.setting_at(bits, activation_bits)
            for layer, bits, activation_bits in chosen_bits(self.linears, named)
        }
        for path, planned in named.items():
            if path in self.key_values:
                settings[self.key_values[path]] = kept_bits(planned)
            elif path in self.operands:
                settings[self.operands[path]] = OperandSetting(operand_bits(self.operands[path], planned))
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
