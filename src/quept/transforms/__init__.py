"""Transforms of a block that leave its full-precision function unchanged."""

from quept.config import Recipe
from quept.transforms.base import FoldedInput, Transform
from quept.transforms.reparameterization import Reparameterize
from quept.transforms.rotation import Rotate
from quept.transforms.smoothing import ChannelScales, Smooth, fit


def transforms_of(recipe: Recipe) -> tuple[Transform, ...]:
    """Return the transforms that a recipe enables, in the order in which they are folded."""
    chosen: list[Transform] = []
    if recipe.rotation.enabled:
        chosen.append(Rotate(recipe.rotation))
    if recipe.smoothing.enabled:
        chosen.append(Smooth(recipe))
    if recipe.reparameterization.enabled:
        chosen.append(Reparameterize(recipe))
    return tuple(chosen)


__all__ = ["ChannelScales", "FoldedInput", "Reparameterize", "Rotate", "Smooth", "Transform", "fit", "transforms_of"]
