"""Putting other layers in the place of a block's linears."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import nn

from quept.config import WeightSpec
from quept.layers.convolution import ElasticConv2d
from quept.layers.inputs import ElasticInput
from quept.layers.linear import ElasticLinear

Layer = TypeVar("Layer", bound=nn.Module)
LayerFactory = Callable[[nn.Module, WeightSpec, str, ElasticInput | None], Layer]
"""From a linear, the settings of its weight, its path in the model and what stands in front of it, to a layer."""


def elastic_like(linear: nn.Module, spec: WeightSpec, path: str, input: ElasticInput | None) -> ElasticLinear:
    """Make an uncalibrated elastic layer for a linear or a convolution; see `ElasticLinear.like`."""
    kind = ElasticConv2d if isinstance(linear, nn.Conv2d) else ElasticLinear
    return kind.like(linear, spec, path, input)


def replace_linears(
    block: nn.Module,
    path: str | None,
    specs: Mapping[str, WeightSpec],
    inputs: Mapping[str, ElasticInput],
    make: LayerFactory[Layer],
) -> dict[str, Layer]:
    """Replace linears and convolutions of the block at `path`, in place; without a `path` the block is the model.

    `specs` names them, each with its settings; `inputs` are the transforms and roundings in front of those that have
    any. Returns the new layers by name.
    """
    made = {}
    for name, spec in specs.items():
        made[name] = make(block.get_submodule(name), spec, f"{path}.{name}" if path else name, inputs.get(name))
        put(block, name, made[name])
    return made


def put(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the submodule at `name`."""
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, layer)
