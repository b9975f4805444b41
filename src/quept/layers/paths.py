"""Forward paths of an elastic linear, and which of them a setting takes: chosen once for a switch, not at each pass.

| path | multiplies by |
|---|---|
| `full_precision` | the master, where it is kept in floats |
| `dense` | a derived weight in floats |
| `packed` | packed codes as they are |
| `integers` | codes, by inputs that are codes as well |
| `given` | a weight that came with the setting |
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from quept import ops
from quept.formats.integers import IntegerWeight
from quept.layers.execution import Execution
from quept.layers.inputs import ElasticInput


class LinearSetting(NamedTuple):
    """Bit-widths of a linear's weight and inputs, None being full precision, and the forward path that they take.

    `weight` is multiplied by the path `given` alone. `unclipped` rounds inputs to nearest on their whole range.
    """

    bits: int | None
    activation_bits: int | None
    path: "ForwardPath"
    weight: Tensor | None = None
    unclipped: bool = False


class Multiplier(Protocol):
    """A linear as its forward paths see it; see `ElasticLinear`."""

    path: str
    weight: Any
    execution: Execution
    is_matrix: bool

    @property
    def input(self) -> ElasticInput | None:
        """What stands in front of the product."""

    @property
    def bias(self) -> Tensor | None:
        """The bias, `(out,)`."""

    def coded(self, bits: int | None) -> int | None:
        """Return the bits of the codes that stand for `bits`, None for a float master."""

    def has_codes(self, bits: int) -> bool:
        """Return whether the weight at `bits` is codes on a grid."""

    def has_integer_product(self, bits: int, activation_bits: int | None) -> bool:
        """Return whether codes are multiplied by codes."""

    def resident(self, bits: int, form: str) -> Any:
        """Return the weight at `bits`, derived or from the weight cache."""

    def multiply(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Return `hidden @ weight.T + bias`."""


ForwardPath = Callable[[Multiplier, Tensor, LinearSetting], Tensor]


def choose(layer: Multiplier, bits: int | None, activation_bits: int | None) -> LinearSetting:
    """Return the setting for these bit-widths with the fastest path that the layer may take."""
    path: ForwardPath = full_precision
    if bits is not None and layer.has_integer_product(bits, activation_bits):
        path = integers
    elif (coded := layer.coded(bits)) is not None:
        path = packed if layer.execution.packed and layer.is_matrix and layer.has_codes(coded) else dense
    return LinearSetting(bits, activation_bits, path)


def full_precision(layer: Multiplier, hidden: Tensor, setting: LinearSetting) -> Tensor:
    """Multiply by the float master."""
    return layer.multiply(_input(layer, hidden, setting), layer.weight)


def given(layer: Multiplier, hidden: Tensor, setting: LinearSetting) -> Tensor:
    """Multiply by the weight of the setting."""
    assert setting.weight is not None
    return layer.multiply(_input(layer, hidden, setting), setting.weight)


def dense(layer: Multiplier, hidden: Tensor, setting: LinearSetting) -> Tensor:
    """Multiply by the derived weight."""
    return layer.multiply(_input(layer, hidden, setting), layer.resident(_coded(layer, setting), "dense"))


def packed(layer: Multiplier, hidden: Tensor, setting: LinearSetting) -> Tensor:
    """Multiply by packed codes; where inputs have gradients, by the dense weight."""
    if torch.is_grad_enabled() and hidden.requires_grad:
        return dense(layer, hidden, setting)
    weight = layer.resident(_coded(layer, setting), "packed")
    # What has been rounded already is not rounded once more.
    exact = layer.execution.exact or setting.activation_bits is not None
    return ops.packed_linear(_input(layer, hidden, setting), weight, layer.bias, exact=exact)


def integers(layer: Multiplier, hidden: Tensor, setting: LinearSetting) -> Tensor:
    """Multiply codes by codes; where gradients are recorded, as floats."""
    if torch.is_grad_enabled():
        floats = packed if layer.execution.packed else dense
        return floats(layer, hidden, setting)
    assert setting.activation_bits is not None
    assert layer.input is not None
    tokens = layer.input.codes(hidden, setting.activation_bits, layer.path)
    weight: IntegerWeight = layer.resident(_coded(layer, setting), "integers")
    return ops.integer_linear(tokens, weight, layer.bias, hidden.dtype)


FORM_OF: dict[ForwardPath, str] = {dense: "dense", packed: "packed", integers: "integers"}


def _input(layer: Multiplier, hidden: Tensor, setting: LinearSetting) -> Tensor:
    if layer.input is None:
        return hidden
    rounded: Tensor = layer.input(hidden, setting.activation_bits, layer.path, setting.unclipped)
    return rounded


def _coded(layer: Multiplier, setting: LinearSetting) -> int:
    bits = layer.coded(setting.bits)
    assert bits is not None
    return bits
