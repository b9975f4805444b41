"""What stands in a block's place while a part of a model runs without it."""

from typing import Any

from torch import Tensor, nn


class StandIn(nn.Module):
    """Hands the hidden states on, or `replacement` in their place, whatever else the model calls it with."""

    def __init__(self, block: nn.Module, replacement: Tensor | None = None) -> None:
        super().__init__()
        # Plain attributes of the block that the model may read while it loops over blocks.
        self.__dict__.update({k: v for k, v in vars(block).items() if k not in vars(self)})
        self.replacement = replacement

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The states that the next block gets."""
        return hidden if self.replacement is None else self.replacement
