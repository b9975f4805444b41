"""A stand-in for a block, while a part of a model runs without it."""

from typing import Any

from torch import Tensor, nn


class Passthrough(nn.Module):
    """Hands the hidden states on, or `replacement` in their place, whatever else the model calls it with.

    `outputs` is how many things the block returns, the states first, or 0 where it is the states alone.
    """

    def __init__(self, block: nn.Module, replacement: Tensor | None = None, outputs: int = 0) -> None:
        super().__init__()
        # What the model may read while it loops over blocks: plain attributes, and whether there is a child.
        self.__dict__.update({k: v for k, v in vars(block).items() if k not in vars(self)})
        self.__dict__.update({k: None if v is None else True for k, v in block._modules.items()})
        self.replacement, self.outputs = replacement, outputs

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the states that the next block gets, and None for all else that the block returns."""
        states = hidden if self.replacement is None else self.replacement
        return (states, *[None] * (self.outputs - 1)) if self.outputs else states
