"""Settings of activation quantization."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from quept.config.base import Value
from quept.config.bits import Bits, parse_bits

RangeInit = Literal["min-max", "percentile", "search"]


class Activations(Value):
    """Bit-widths and ranges of activations."""

    former_names: ClassVar = {"start": "range_init"}

    bits: tuple[Bits, ...] = ()
    """Bit-widths of the linears' inputs; empty: weights alone are quantized. In a file also text, `"4-8"`."""

    range: Literal["token", "tensor"] = "token"
    """`token`: symmetric, on a range that is measured for every token and clipped to a learned ratio. `tensor`:
    asymmetric, on a range that is learned for each bit-width and stays. Source: paper, `token` for language models,
    `tensor` for the ViT family."""

    group_size: Annotated[int, Field(strict=True, ge=1)] | None = None
    """Channels of a token that share a range, with `range = "token"`; None: all."""

    products: bool = False
    """Round both operands of attention's two products as well, with `range = "tensor"`. Source: paper, ViT family."""

    range_init: RangeInit = "percentile"
    """Where ranges of tensors start: `min-max`, the best of a few `percentile`s of the values, or a `search` for the
    least error. Source: `percentile`, RepQ-ViT; `search`, quept."""

    softmax: Literal["uniform", "log"] = "uniform"
    """Grid of attention's probabilities: `uniform`, or `log` with levels close together near zero. Source: `log`,
    AdaLog."""

    @field_validator("bits", mode="before")
    @classmethod
    def _written(cls, bits: Any) -> Any:
        return parse_bits(bits) if isinstance(bits, str) else bits

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.range == "tensor" and self.group_size is not None:
            raise ValueError(
                f"activations.group_size {self.group_size} divides the range of a token; it needs range = 'token'"
            )
        if self.range == "token" and self.products:
            raise ValueError("activations.products are rounded on the range of a tensor; set range = 'tensor'")
        return self

    def bits_for(self, weight_bits: int | None) -> int | None:
        """Return the bits of activations where only those of the weights are named.

        They are the same, or the highest where that is none of theirs: weights of so few bits are not for faster
        products.
        """
        if weight_bits is None or not self.bits:
            return None
        return weight_bits if weight_bits in self.bits else max(self.bits)
