"""Costs of bit-widths in bytes, and budgets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from quept.config import FULL
from quept.errors import InvalidInput
from quept.layers.size import linear_bits, unquantized_bytes
from quept.precision import attention_operands, elastic_linears

Count = Literal["bytes", "layers"]


@dataclass(frozen=True)
class Costs:
    """The storage of a model's linears, by path: how many weights, and bits in storage by bit-width.

    Bits in storage are codes, scales and zero points; see `quept.layers.size.linear_bits`. `outside` are the bytes of
    what no plan changes, layers with one bit-width included. `following` are attentions whose operands are rounded,
    with the linears in them: they run at the most bits of these, which takes no memory.
    """

    weights: Mapping[str, int]
    bits: Mapping[str, Mapping[int, int]]
    outside: int
    only: Mapping[str, int] = field(default_factory=dict)
    following: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any, stored: torch.dtype) -> "Costs":
        """Return the costs of a model, which needs no weights for it; `stored` is the checkpoint's dtype."""
        every = elastic_linears(model)
        linears = {path: layer for path, layer in every.items() if not layer.spec.fixed}
        fixed = {path: layer for path, layer in every.items() if layer.spec.fixed}
        only = {path: layer.spec.groups.bits[0] for path, layer in fixed.items()}
        aside = sum(linear_bits(layer, only[path], stored) for path, layer in fixed.items())
        return cls(
            weights={path: layer.numel for path, layer in linears.items()},
            bits={
                path: {bits: linear_bits(layer, bits, stored) for bits in (*layer.spec.groups.bits, FULL)}
                for path, layer in linears.items()
            },
            outside=unquantized_bytes(model, stored) + (aside + 7) // 8,
            only=only,
            following={
                path: tuple(linear for linear in every if linear.startswith(f"{path}."))
                for path in attention_operands(model)
            },
        )

    def completed(self, bits: Mapping[str, int]) -> dict[str, int]:
        """Return the bits of linears with a choice, and of all else that runs when they do."""
        own = {**bits, **self.only}
        attentions = {path: max(own[linear] for linear in inside) for path, inside in self.following.items() if inside}
        return {**own, **attentions}

    def average_bits(self, bits: int) -> float:
        """Return bits in storage divided by the number of weights."""
        return bits / sum(self.weights.values())

    def model_bytes(self, bits: int) -> int:
        """Return the bytes of the whole model whose linears take so many bits."""
        return self.outside + (bits + 7) // 8


@dataclass(frozen=True)
class Budget:
    """The budget of a plan: average bits, as `count` has it, or bytes of the whole model.

    Counted in bytes, the average is bits in storage, scales and zero points included, over the weights; counted in
    layers it is the paper's, the mean of the bits over the linears.
    """

    average_bits: float | None = None
    max_bytes: int | None = None
    count: Count = "bytes"

    def __post_init__(self) -> None:
        if (self.average_bits is None) == (self.max_bytes is None):
            raise InvalidInput("A budget is an average of bits or a size: give one of the two.")
        if self.average_bits is not None and not 0 < self.average_bits <= FULL:
            raise InvalidInput(f"The average of {self.average_bits} bits is not possible; give more than 0, up to 16.")
        if self.max_bytes is not None and self.count == "layers":
            raise InvalidInput("A size is in bytes; layers can be counted in an average of bits only.")
