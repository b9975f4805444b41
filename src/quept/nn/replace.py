"""Putting elastic layers in the place of linear ones."""

from collections.abc import Sequence

from torch import nn

from quept.nn.elastic import ElasticLinear
from quept.spec import WeightSpec


def replace_linears(block: nn.Module, path: str, linears: Sequence[str], spec: WeightSpec) -> dict[str, ElasticLinear]:
    """Replace the named linears of the block at `path` in place; returns the elastic ones by name."""
    replaced = {}
    for name in linears:
        parent, _, leaf = name.rpartition(".")
        elastic = ElasticLinear.from_linear(block.get_submodule(name), spec, f"{path}.{name}")
        setattr(block.get_submodule(parent), leaf, elastic)
        replaced[name] = elastic
    return replaced
