"""Putting elastic layers in the place of linear ones."""

from collections.abc import Mapping, Sequence

from torch import nn

from quept.config import WeightSpec
from quept.layers.convolution import ElasticConv2d
from quept.layers.inputs import ElasticInput
from quept.layers.linear import ElasticLinear


def replace_linears(
    block: nn.Module,
    path: str | None,
    linears: Sequence[str],
    spec: WeightSpec,
    inputs: Mapping[str, ElasticInput] | None = None,
) -> dict[str, ElasticLinear]:
    """Replace the named linears of the block at `path` in place; returns the elastic ones by name.

    Convolutions may be named as well. Without a `path` the block is the model.

    `inputs` says what a linear's inputs go through first, by name, where they go through anything.
    """
    inputs = inputs or {}
    replaced = {}
    for name in linears:
        parent, _, leaf = name.rpartition(".")
        layer = block.get_submodule(name)
        kind = ElasticConv2d if isinstance(layer, nn.Conv2d) else ElasticLinear
        elastic = kind.from_linear(layer, spec, f"{path}.{name}" if path else name, inputs.get(name))
        setattr(block.get_submodule(parent), leaf, elastic)
        replaced[name] = elastic
    return replaced
