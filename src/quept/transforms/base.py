"""The interface of a transform, which prepares a block for rounding without changing its full-precision function.

A transform is one file with two parts. `fold` changes a block's weights, once, in calibration. `online` and `attach`
give the operations that the model then needs at run time; they follow from settings alone, so that loading an artifact
can repeat them.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from quept.layers.inputs import OnlineTransform
from quept.models import BlockContext


class FoldedInput(NamedTuple):
    """The change of a linear's input, to `(x - shift) / scale`, with which `fold` changed its weight to match.

    Attributes:
        scale: Factor of the weight's columns, `(in,)`.
        shift: Offset of the input, `(in,)`; None for zero.
    """

    scale: Tensor
    shift: Tensor | None = None


class Transform:
    """A transform of blocks. Every method but `fold` may be left as it is, which does nothing."""

    def online(self, block: nn.Module, context: BlockContext) -> Mapping[str, OnlineTransform]:
        """Return the operations on linears' inputs at run time, by path in the block.

        Linears that read one tensor must get equal operations. An operation with learned tensors is a module: its
        parameters are stored with the linears.
        """
        return {}

    def attach(self, block: nn.Module, context: BlockContext) -> None:
        """Add the other operations that the block needs at run time, in place."""

    def observed_inputs(self, context: BlockContext) -> frozenset[str]:
        """Return the paths in the block of linears whose inputs `fold` needs a sample of."""
        return frozenset()

    def fold(self, block: nn.Module, context: BlockContext, inputs: Mapping[str, Tensor]) -> Mapping[str, FoldedInput]:
        """Change the block's weights, in place; together with the operations at run time its function stays the same.

        Args:
            block: The block, with elastic linears.
            context: Architecture, configuration and position of the block.
            inputs: Samples of input rows, `(tokens, in)`, of the linears in `observed_inputs`, by path.

        Returns:
            The change of each linear's input, by path, if that is the only change: the error of plain rounding of the
            original weights can then be computed too.
        """
        raise NotImplementedError

    def notes(self, block: nn.Module, context: BlockContext) -> list[str]:
        """Return sentences for the user about limits of the transform in this model."""
        return []
