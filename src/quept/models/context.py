"""One block of one model, as calibration, transforms and loading are told of it."""

from dataclasses import dataclass
from typing import Any

from quept.config import Recipe
from quept.models.architecture import Architecture
from quept.models.paths import expand, is_present


@dataclass(frozen=True)
class BlockContext:
    """Block number `index` of `blocks` in a model of a family, with the model's configuration.

    The paths of this `architecture`, those of `attentions`, the modules that compute attention, and those of `ignored`,
    linears that a recipe leaves at full precision, are the block's own, without `*`.
    """

    architecture: Architecture
    attentions: tuple[str, ...]
    config: Any
    index: int
    blocks: int
    ignored: frozenset[str] = frozenset()

    @classmethod
    def of(cls, architecture: Architecture, model: Any, index: int, recipe: Recipe | None = None) -> "BlockContext":
        """Return the context of a block in a model; its linears may have been replaced already.

        Without a `recipe` no linear is ignored.
        """
        blocks = architecture.block_list(model)
        block = blocks[index]
        attentions = tuple(path for path in expand(block, architecture.attention) if is_present(block, path))
        own, path = architecture.in_block(block), architecture.block_path(index)
        ignored = frozenset(name for name in own.linears if recipe and recipe.weight_spec_for(f"{path}.{name}") is None)
        return cls(own, attentions, model.config, index, len(blocks), ignored)

    @property
    def inputs(self) -> list[tuple[str, ...]]:
        """The linears to quantize, in groups that read the same tensor."""
        groups = (tuple(path for path in group if path not in self.ignored) for group in self.architecture.inputs)
        return [group for group in groups if group]

    @property
    def path(self) -> str:
        """The block's module path in the model."""
        return self.architecture.block_path(self.index)

    @property
    def is_first(self) -> bool:
        """Whether the model's embeddings flow into this block."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether the model's final norm and head follow."""
        return self.index + 1 == self.blocks
