"""What an artifact's model is made of: elastic linears, what their inputs go through, transforms, keys and values.

Calibration puts a block together like this before it trains it, and loading does before it reads the tensors.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from quept.architectures import Architecture, Place, architecture_of
from quept.architectures.attention import attach, attach_products
from quept.nn import ElasticInput, ElasticLinear, replace_linears
from quept.nn.elastic import weight_of
from quept.nn.inputs import OnlineTransform
from quept.spec import Recipe
from quept.transforms import Transform, transforms_of


def make_elastic(model: Any, recipe: Recipe) -> None:
    """Make a model elastic, uncalibrated, in place: its blocks, and layers outside that the recipe gives a width."""
    architecture = architecture_of(model.config.model_type)
    transforms = transforms_of(recipe)
    for index, block in enumerate(architecture.block_list(model)):
        assemble(block, Place.of(architecture, model, index), recipe, transforms)
    assemble_outer(model, architecture, recipe)


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
    for attention in place.attentions:
        if place.architecture.predicts_tokens:
            # Where values are rotated in the weights, rotating them again would undo it.
            rotates_values = not recipe.rotation.enabled
            attach(block, place.path, attention, rotates_values, *place.architecture.keys(place.config))
        if recipe.activations.products:
            attach_products(block, place.path, attention, recipe.activations)
    return linears


def assemble_outer(model: nn.Module, architecture: Architecture, recipe: Recipe) -> dict[str, ElasticLinear]:
    """Replace the layers outside the blocks by elastic ones of one width, in place, where the recipe has one for them.

    Returns them by path. `model` may be a part of one: what it does not have is passed over.
    """
    spec = recipe.outer_weight_spec
    if spec is None:
        return {}
    layers, activations = architecture.outer_layers(model), recipe.outer_activations
    inputs = {
        path: ElasticInput(activations, [path], None, layer.weight.device)
        for path, layer in layers.items()
        if activations.bits
    }
    return replace_linears(model, None, list(layers), spec, inputs)


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
