"""One block of one model, as calibration, transforms and loading are told of it."""

from dataclasses import dataclass
from typing import Any

from quept.models.architecture import Architecture
from quept.models.paths import expand, is_present


@dataclass(frozen=True)
class BlockContext:
    """Block number `index` of `blocks` in a model of a family, with the model's configuration.

    The paths of this `architecture`, and those of `attentions`, the modules that compute attention, are the block's
    own, without `*`.
    """

    architecture: Architecture
    attentions: tuple[str, ...]
    config: Any
    index: int
    blocks: int

    @classmethod
    def of(cls, architecture: Architecture, model: Any, index: int) -> "BlockContext":
        """Return the context of a block in a model; its linears may have been replaced already."""
        blocks = architecture.block_list(model)
        block = blocks[index]
        attentions = tuple(path for path in expand(block, architecture.attention) if is_present(block, path))
        return cls(architecture.in_block(block), attentions, model.config, index, len(blocks))

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
