"""A convolution that runs at every bit-width of a set: a linear layer on patches."""

from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from quept.config import WeightSpec
from quept.layers.inputs import ElasticInput
from quept.layers.linear import ElasticLinear, weight_of


class ElasticConv2d(ElasticLinear):
    """`nn.Conv2d` on `(batch, channels, height, width)`; its master weight is `(out, channels x height x width)`."""

    is_matrix = False

    def __init__(self, convolution: nn.Conv2d, spec: WeightSpec, path: str, input: ElasticInput | None = None) -> None:
        weight = weight_of(convolution).detach().contiguous()
        super().__init__(weight.shape, convolution.bias, spec, path, input, dtype=weight.dtype, device=weight.device)
        if self.store is None:
            self.weight.data = weight
        self.kernel = convolution.weight.shape[1:]
        self.steps: dict[str, Any] = {
            "stride": convolution.stride,
            "padding": convolution.padding,
            "dilation": convolution.dilation,
            "groups": convolution.groups,
        }

    @classmethod
    def like(cls, linear: nn.Module, spec: WeightSpec, path: str, input: ElasticInput | None = None) -> Self:
        """From `nn.Conv2d`; `ValueError` where it pads with anything but zeros."""
        assert isinstance(linear, nn.Conv2d)
        if linear.padding_mode != "zeros":
            raise ValueError(f"the convolution at {path} pads with {linear.padding_mode!r}, not with zeros")
        return cls(linear, spec, path, input)

    def _product(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(hidden, weight.view(-1, *self.kernel), bias, **self.steps)
