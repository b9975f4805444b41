"""A convolution at every bit-width is a linear layer on patches."""

import pytest
import torch
from torch import nn

from quept.config import Activations, Adapter, BitGroups, Granularity, WeightSpec
from quept.layers import ElasticInput, ElasticLinear
from quept.layers.convolution import ElasticConv2d
from quept.layers.replace import elastic_like, replace_linears

SPEC = WeightSpec(
    groups=BitGroups.partition((4, 8)), granularity=Granularity(grouped_bits=()), adapter=Adapter(kind="none")
)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_linear_layer_on_patches(bias):
    torch.manual_seed(0)
    convolution, images = nn.Conv2d(3, 10, 4, stride=4, bias=bias), torch.randn(2, 3, 12, 8)
    elastic = ElasticConv2d.like(convolution, SPEC, "patches")
    torch.testing.assert_close(elastic(images), convolution(images))
    linear = nn.Linear(48, 10, bias=bias)
    linear.weight.copy_(convolution.weight.flatten(1))
    if bias:
        linear.bias.copy_(convolution.bias)
    beside = ElasticLinear.like(linear, SPEC, "linear")
    patches = nn.functional.unfold(images, 4, stride=4).transpose(1, 2)
    for bits in (4, 8):
        elastic.bits = beside.bits = bits
        torch.testing.assert_close(elastic(images).flatten(2).transpose(1, 2), beside(patches))
        assert not torch.equal(elastic(images), convolution(images))


@torch.no_grad()
def test_padding_steps_and_groups_stay():
    convolution, images = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(ElasticConv2d.like(convolution, SPEC, "c")(images), convolution(images))
    with pytest.raises(ValueError, match="reflect"):
        ElasticConv2d.like(nn.Conv2d(4, 6, 3, padding_mode="reflect"), SPEC, "c")


@torch.no_grad()
def test_its_input_is_rounded_like_any_other():
    model, images = nn.Sequential(nn.Conv2d(3, 10, 4, stride=4)), torch.randn(2, 3, 12, 8)
    given = ElasticInput(Activations(bits=(4,), range="tensor"), ["0"], None, torch.device("cpu"))
    layers = replace_linears(model, None, {"0": SPEC}, {"0": given}, elastic_like)
    assert layers["0"].path == "0"
    given.quantizer.init_range("min-max", images)
    layers["0"].activation_bits = 4
    rounded = nn.functional.conv2d(given.quantizer(images, 4), layers["0"].weight.view(10, 3, 4, 4), model[0].bias, 4)
    torch.testing.assert_close(model(images), rounded)
