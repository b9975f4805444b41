"""The products by which a loaded model multiplies."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Execution:
    """The products that an elastic linear may use; where one is not possible, it multiplies dense floats.

    Attributes:
        integers: where weights and activations are both rounded, multiply their codes.
        packed: keep weights packed at their bit-width and multiply them as they are, instead of deriving dense ones.
        For
            a few tokens at a time, activations are then rounded to eight bits on the way, unless `exact`.
        exact: multiply packed weights by the activations as they come.
        product_dtype: of products with dense weights, during calibration; None leaves it to the inputs.
    """

    integers: bool = False
    packed: bool = False
    exact: bool = False
    product_dtype: torch.dtype | None = None

    def multiply(self, product: Callable[..., Tensor], hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `product(hidden, weight, bias)`, computed in `product_dtype`; the bias is added in the inputs'."""
        if self.product_dtype is None:
            return product(hidden, weight, bias)
        result = product(hidden.to(self.product_dtype), weight.to(self.product_dtype), None).to(hidden.dtype)
        return result if bias is None else result + bias
