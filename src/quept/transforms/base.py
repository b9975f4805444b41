"""What prepares a block for rounding without changing its full-precision function.

A transform is one file: what it folds into a block's weights, and what of it remains to be done as the model runs.
The first happens once, in calibration; the second also whenever an artifact is loaded, from settings alone.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from quept.layers.inputs import OnlineTransform
from quept.models import BlockContext


class FoldedInput(NamedTuple):
    """What became of a linear's input: `(x - shift) / scale`, both `(in,)`; None is a shift of nothing.

    The columns of its weight were multiplied by `scale`.
    """

    scale: Tensor
    shift: Tensor | None = None


class Transform:
    """The parts that a transform may have; each does nothing unless it is overridden."""

    def online(self, block: nn.Module, context: BlockContext) -> Mapping[str, OnlineTransform]:
        """What the inputs of a block's linears go through as the model runs, by path in the block.

        Linears that read the same tensor get the same transform. One with learned tensors is a module: its parameters
        are stored with the linears.
        """
        return {}

    def attach(self, block: nn.Module, context: BlockContext) -> None:
        """Make the rest of the block do what remains to be done as the model runs."""

    def observed_inputs(self, context: BlockContext) -> frozenset[str]:
        """The linears, by path in the block, of whose inputs `fold` needs a sample."""
        return frozenset()

    def fold(self, block: nn.Module, context: BlockContext, inputs: Mapping[str, Tensor]) -> Mapping[str, FoldedInput]:
        """Change the block's weights, in place, so that together with what is done online nothing has changed.

        `inputs` holds samples of input rows, `(tokens, in)`, of the linears in `observed_inputs`. Returns, by
        linear, where inputs moved channel by channel and that is all that happened: plain rounding of the original
        weights can then still be told.
        """
        raise NotImplementedError

    def notes(self, block: nn.Module, context: BlockContext) -> list[str]:
        """What a user should know about the transform of this model's blocks, a sentence each."""
        return []
