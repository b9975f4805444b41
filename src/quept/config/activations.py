"""Settings of activation quantization."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from quept.config.base import Value
from quept.config.bits import Bits, parse_bits

RangeInit = Literal["min-max", "percentile", "search"]


class Activations(Value):
    """Which widths activations can be rounded to, and on which ranges; none means weight-only.

    With the range of a `"token"` the linears' inputs are rounded symmetrically on a range that is measured anew for
    every token and clipped to a share that is learned per width; `group_size` inputs of a token share a range, or all
    of them where it is None. With that of a `"tensor"` they are rounded asymmetrically on a range that is learned per
    width and stays, and where `products` is set, so are both operands of attention's two products; `range_init` says
    where such ranges begin (RepQ-ViT: the best of a few percentiles). Attention's probabilities may have a logarithmic
    grid instead of a uniform one, where `softmax` says so (AdaLog).
    """

    former_names: ClassVar = {"start": "range_init"}

    bits: tuple[Bits, ...] = ()
    range: Literal["token", "tensor"] = "token"
    group_size: Annotated[int, Field(ge=1)] | None = None
    products: bool = False
    range_init: RangeInit = "percentile"
    softmax: Literal["uniform", "log"] = "uniform"

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
        """The width that activations have where only the weights' width is named.

        The same, or the highest where that is none of theirs: weights of so few bits are not for faster products.
        """
        if weight_bits is None or not self.bits:
            return None
        return weight_bits if weight_bits in self.bits else max(self.bits)
