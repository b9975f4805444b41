"""Tensors that keep their dtype whatever the model is cast to."""

import pytest
import torch
from torch import nn

from quept.layers.keep_dtype import KeepDtype


class Layer(KeepDtype):
    def __init__(self):
        super().__init__()
        self.plain = nn.Parameter(torch.tensor([1 / 3]))
        self.scale = nn.Parameter(torch.tensor([1 / 3]))
        self.codes = nn.ParameterDict({"4": nn.Parameter(torch.tensor([5], dtype=torch.uint8), requires_grad=False)})
        self.register_buffer("center", torch.tensor([1 / 7]))

    def learned(self):
        return {"scale": self.scale, "codes.4": self.codes["4"], "center": self.center}


@pytest.mark.parametrize(
    "cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double, lambda module: module.to(torch.float16)]
)
def test_only_tensors_that_are_not_learned_are_cast(cast):
    model = nn.Sequential(Layer())
    before = {name: tensor.clone() for name, tensor in model[0].learned().items()}
    scale = model[0].scale
    cast(model)
    assert model[0].plain.dtype != torch.float32
    for name, tensor in model[0].learned().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    assert model[0].scale is scale, "an optimizer keeps its hold on the parameter"
    assert model.state_dict()["0.center"].dtype == torch.float32


def test_learned_tensors_move_to_another_device_and_keep_their_dtype_there():
    layer = Layer().to("meta", torch.float16)
    assert {tensor.device.type for tensor in layer.state_dict().values()} == {"meta"}
    assert [tensor.dtype for tensor in layer.learned().values()] == [torch.float32, torch.uint8, torch.float32]
    assert layer.plain.dtype == torch.float16


def test_a_module_names_what_it_keeps():
    with pytest.raises(NotImplementedError):
        KeepDtype().half()
