"""What an artifact's model is made of: elastic linears, what their inputs go through, transforms, keys and values.

Calibration puts a block together like this before it trains it, and loading does before it reads the tensors.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from quept.architectures import Place, architecture_of
from quept.architectures.attention import attach
from quept.nn import ElasticInput, ElasticLinear, replace_linears
from quept.nn.elastic import weight_of
from quept.nn.inputs import OnlineTransform
from quept.spec import Recipe
from quept.transforms import Transform, transforms_of


def make_elastic(model: Any, recipe: Recipe) -> None:
    """Make a causal language model's blocks elastic, uncalibrated, in place; keys and values can be rounded, too."""
    architecture = architecture_of(model.config.model_type)
    blocks = architecture.block_list(model)
    transforms = transforms_of(recipe)
    for index, block in enumerate(blocks):
        place = Place(architecture, model.config, index, len(blocks))
        assemble(block, place, recipe, transforms)


def assemble(
    block: nn.Module, place: Place, recipe: Recipe, transforms: tuple[Transform, ...]
) -> dict[str, ElasticLinear]:
    """Replace a block's linears by elastic ones, in place, and attach what transforms do online.

    Returns the linears by name.
    """
    online = {path: step for transform in transforms for path, step in transform.online(block, place).items()}
    inputs = _inputs(block, place, recipe, online)
    linears = replace_linears(block, place.path, place.architecture.linears, recipe.weight_spec, inputs)
    for transform in transforms:
        transform.attach(block, place)
    # Where values are rotated in the weights, rotating them again would undo it.
    architecture, rotates_values = place.architecture, not recipe.rotation.enabled
    attach(block, place.path, architecture.attention, rotates_values, *architecture.keys(place.config))
    return linears


def _inputs(
    block: nn.Module, place: Place, recipe: Recipe, online: Mapping[str, OnlineTransform]
) -> dict[str, ElasticInput]:
    """What the inputs of each linear go through, by name: one for all linears that read the same tensor."""
    made = {}
    for readers in place.architecture.inputs:
        transform = online.get(readers[0])
        if transform is None and not recipe.activations.bits:
            continue
        device = weight_of(block.get_submodule(readers[0])).device
        paths = [f"{place.path}.{name}" for name in readers]
        made.update(dict.fromkeys(readers, ElasticInput(recipe.activations, paths, transform, device)))
    return made
