"""Sites in a block at which a per-channel scale may move, and the residual stream that runs through it.

A site is data: a producer (a norm or a linear), the linears that consume its output, and the way in which the
consumers' input channels map to the producer's output rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Features:
    """The consumers' input channel `j` is the producer's output row `offset(config) + j`."""

    offset: Callable[[Any], int] = lambda config: 0

    def rows(self, config: Any, channels: int) -> Tensor:
        """Return the producer's row for each of `channels` input channels, `(channels,)` int64."""
        return torch.arange(channels) + self.offset(config)


@dataclass(frozen=True)
class Values:
    """The consumers' inputs are attention outputs, each a mixture of one row of the value projection over tokens.

    Head `h` reads key-value head `h // (heads / key_value_heads)`, so with grouped-query attention several input
    channels share a row. `packed` is the row layout of a fused projection: None for a projection of its own,
    "blocks" for all queries, all keys, all values in turn, "heads" for query, key and value of each head in turn.
    """

    packed: str | None = None

    def rows(self, config: Any, channels: int) -> Tensor:
        """Return the value row for each of `channels` attention output channels, `(channels,)` int64."""
        heads: int = config.num_attention_heads
        key_value_heads: int = getattr(config, "num_key_value_heads", None) or heads
        size = channels // heads
        head, within = torch.arange(channels) // size, torch.arange(channels) % size
        head = head // (heads // key_value_heads)
        match self.packed:
            case "blocks":
                return (heads + key_value_heads) * size + head * size + within
            case "heads":
                return head * 3 * size + 2 * size + within
        return head * size + within


@dataclass(frozen=True)
class Site:
    """A per-channel scale may move from `producer` into the input columns of `consumers` (paths in the block).

    Attributes:
        producer: a norm or one of the architecture's linears.
        consumers: all linears that read the producer's output.
        channels: the producer's rows behind the consumers' input channels.
        when: whether moving a scale leaves the function unchanged in a given transformers configuration.
        shifts: whether a constant per channel may move as well. It may not where zeros (padding) are put beside the
            producer's outputs.
    """

    producer: str
    consumers: tuple[str, ...]
    channels: Features | Values = Features()
    when: Callable[[Any], bool] = lambda config: True
    shifts: bool = True


@dataclass(frozen=True)
class Residual:
    """A residual stream that can be rotated within the weights of the blocks around it.

    Only the norms that are producers of sites read it, only the linears in `writers` add to it, and a norm's weight and
    bias can move into its consumers.

    Attributes:
        writers: the linears whose outputs are added to the stream.
        centered: whether the norms subtract the mean, so that a rotation must leave the mean where it is.
        when: whether all this holds in a given transformers configuration.
    """

    writers: tuple[str, ...]
    centered: bool = False
    when: Callable[[Any], bool] = lambda config: True
