"""Putting an elastic model together: linears, the rounding of their inputs, transforms, keys and values.

Calibration puts a block together like this before it trains it, and loading does before it reads the tensors.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from quept.attention import attach, attach_operands
from quept.config import Recipe
from quept.layers import ElasticInput, ElasticLinear
from quept.layers.inputs import OnlineTransform
from quept.layers.linear import weight_of
from quept.layers.replace import Layer, LayerFactory, elastic_like, replace_linears
from quept.models import Architecture, BlockContext, architecture_for
from quept.models.adapters import Adapters
from quept.models.plain import PlainCheckpoint
from quept.transforms import Transform, transforms_of


def make_elastic(model: Any, recipe: Recipe, architecture: Architecture | None = None) -> None:
    """Make a model elastic, uncalibrated, in place: its blocks, and the layers outside them that the recipe quantizes.

    `architecture` is the model's family; None takes the registered one.
    """
    architecture = architecture_for(model.config, architecture)
    architecture.check(model)
    transforms = transforms_of(recipe)
    for index, block in enumerate(architecture.block_list(model)):
        assemble(block, BlockContext.of(architecture, model, index, recipe), recipe, transforms, elastic_like)
    assemble_outer(model, architecture, recipe)
    transformed = any(each.enabled for each in (recipe.rotation, recipe.smoothing, recipe.reparameterization))
    model.peft_config = Adapters(str(model.name_or_path), transformed)  # PEFT asks it what to put beside a linear
    model.hf_quantizer = PlainCheckpoint(rotated=recipe.rotation.enabled)  # `save_pretrained` asks it what to write


def assemble(
    block: nn.Module,
    context: BlockContext,
    recipe: Recipe,
    transforms: tuple[Transform, ...],
    make: LayerFactory[Layer],
) -> dict[str, Layer]:
    """Replace a block's linears by the layers that `make` gives, in place, and attach what transforms do online.

    Returns the layers by name.
    """
    online = {path: step for transform in transforms for path, step in transform.online(block, context).items()}
    inputs = _inputs(block, context, recipe, online)
    found = {path: recipe.weight_spec_for(f"{context.path}.{path}") for path in context.architecture.linears}
    specs = {path: spec for path, spec in found.items() if spec is not None}
    linears = replace_linears(block, context.path, specs, inputs, make)
    for transform in transforms:
        transform.attach(block, context)
    for attention in context.attentions:
        if context.architecture.task.keeps_keys_values:
            # Where values are rotated in the weights, rotating them again would undo it.
            rotates_values = not recipe.rotation.enabled
            attach(block, context.path, attention, rotates_values, *context.architecture.keys(context.config))
        if recipe.activations.products:
            attach_operands(block, context.path, attention, recipe.activations)
    return linears


def assemble_outer(model: nn.Module, architecture: Architecture, recipe: Recipe) -> dict[str, ElasticLinear]:
    """Replace the layers outside the blocks by elastic ones of one bit-width, in place, where the recipe has one.

    Returns them by path. `model` may be a part of one: what it does not have is passed over.
    """
    layers, activations = architecture.outer_layers(model), recipe.outer_activations
    specs = {path: spec for path in layers if (spec := recipe.outer_weight_spec_for(path)) is not None}
    inputs = {
        path: ElasticInput(activations, [path], None, layers[path].weight.device) for path in specs if activations.bits
    }
    return replace_linears(model, None, specs, inputs, elastic_like)


def _inputs(
    block: nn.Module, context: BlockContext, recipe: Recipe, online: Mapping[str, OnlineTransform]
) -> dict[str, ElasticInput]:
    """Return what stands in front of each linear, by path: one object for all linears that read the same tensor."""
    made = {}
    for readers in context.inputs:
        transform = online.get(readers[0])
        if transform is None and not recipe.activations.bits:
            continue
        device = weight_of(block.get_submodule(readers[0])).device
        paths = [f"{context.path}.{name}" for name in readers]
        made.update(dict.fromkeys(readers, ElasticInput(recipe.activations, paths, transform, device)))
    return made
