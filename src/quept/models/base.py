"""What quept must know about a model family, as data.

A model is a list of blocks; a block has linear layers to quantize, and sites at which a per-channel scale can move
between a producer (a norm or a linear) and the linears that consume its output. Nothing outside this package asks
which family a model belongs to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

# What a model does, in the names of transformers' pipelines; it decides on its inputs and on how it is judged.
Task = Literal["text-generation", "image-classification"]


@dataclass(frozen=True)
class Features:
    """The consumers' input channel `j` is the producer's output row `offset(config) + j`."""

    offset: Callable[[Any], int] = lambda config: 0

    def rows(self, config: Any, channels: int) -> Tensor:
        """The producer's row for each of `channels` input channels, `(channels,)` int64."""
        return torch.arange(channels) + self.offset(config)


@dataclass(frozen=True)
class Values:
    """The consumers' inputs are attention outputs, each a mixture of one row of the value projection over tokens.

    Head `h` reads key-value head `h // (heads / key_value_heads)`, so with grouped-query attention several input
    channels share a row. `packed` says how a fused projection lays out its rows: None for a projection of its own,
    "blocks" for all queries, all keys, all values in turn, "heads" for query, key and value of each head in turn.
    """

    packed: str | None = None

    def rows(self, config: Any, channels: int) -> Tensor:
        """The value row for each of `channels` attention output channels, `(channels,)` int64."""
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

    `when` says for which configurations this leaves the function unchanged. Where `shifts`, so does a constant per
    channel that moves as well; where zeros are put beside the producer's outputs (padding), it would not.
    """

    producer: str
    consumers: tuple[str, ...]
    channels: Features | Values = Features()
    when: Callable[[Any], bool] = lambda config: True
    shifts: bool = True


@dataclass(frozen=True)
class Residual:
    """A residual stream that can be rotated within the weights of the blocks around it.

    Nothing but the norms that are producers of sites reads it, nothing but the linears in `writers` adds to it, and a
    norm's weight and bias can move into its consumers. `centered` says that the norms subtract the mean, so that a
    rotation must leave it where it is. `when` says for which configurations all this is so.
    """

    writers: tuple[str, ...]
    centered: bool = False
    when: Callable[[Any], bool] = lambda config: True


@dataclass(frozen=True)
class Architecture:
    """One model family: transformers' `model_type`, where its blocks are, their linears and smoothing sites.

    Paths in a block may hold one `*`, which stands for every child there is in its place; a path that a block does not
    have is passed over. `attention` is the module in a block that computes attention. `outer` are the layers in front
    of the blocks and behind them, linears and convolutions of patches that do not overlap, which are kept at a width
    of their own. `outputs` is how many things a block returns of which the hidden states are the first, or 0 where
    it returns nothing else. `residual` is None where norms stand between the linears and the residual stream.
    `norm_offset` is what the family's norms add to their weight before they multiply by it (Gemma: 1).
    """

    model_type: str
    blocks: str
    linears: tuple[str, ...]
    sites: tuple[Site, ...]
    attention: str = "self_attn"
    task: Task = "text-generation"
    outer: tuple[str, ...] = ()
    outputs: int = 0
    residual: Residual | None = None
    norm_offset: float = 0.0

    def block_list(self, model: nn.Module) -> nn.ModuleList:
        """The list of blocks of a model of this family."""
        blocks = model.get_submodule(self.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def block_path(self, index: int) -> str:
        """The module path of block `index` in the model."""
        return f"{self.blocks}.{index}"

    def outer_layers(self, model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
        """The layers outside the blocks that have a width of their own, by path; a model without a head has fewer."""
        found = {path: module for path, module in model.named_modules() if path in self.outer}
        return {path: module for path, module in found.items() if isinstance(module, nn.Linear | nn.Conv2d)}

    @property
    def predicts_tokens(self) -> bool:
        """Whether there is a prediction for every token, from those before, whose keys and values are kept."""
        return self.task == "text-generation"

    def arguments(self, samples: Tensor) -> dict[str, Any]:
        """How the model is called with samples: token ids `(batch, tokens)`, or images `(batch, channels, ...)`."""
        return {"input_ids": samples, "use_cache": False} if self.predicts_tokens else {"pixel_values": samples}

    def keys(self, config: Any) -> tuple[int, int]:
        """How many heads keys have, and how many channels each."""
        heads: int = config.num_attention_heads
        size: int = getattr(config, "head_dim", None) or config.hidden_size // heads
        return getattr(config, "num_key_value_heads", None) or heads, size

    def is_linear(self, path: str) -> bool:
        """Whether the module at `path` in a block is one of the linears to quantize (else a norm)."""
        return path in self.linears

    @property
    def inputs(self) -> tuple[tuple[str, ...], ...]:
        """The tensors that linears multiply, each as the linears that read it: what is quantized with activations."""
        together = {path: site.consumers for site in self.sites for path in site.consumers}
        return tuple(dict.fromkeys(together.get(path, (path,)) for path in self.linears))

    def together(self, model: nn.Module) -> list[tuple[str, ...]]:
        """The linears of a model that read the same tensor, by module path: engines fuse them, at one width."""
        blocks = range(len(self.block_list(model)))
        return [tuple(f"{self.block_path(index)}.{path}" for path in each) for index in blocks for each in self.inputs]

    @property
    def float32_parameters(self) -> tuple[str, ...]:
        """Parameters of a block that need float32 to take a scale in: powers of two are not exact beside an offset."""
        if not self.norm_offset:
            return ()
        return tuple(f"{site.producer}.weight" for site in self.sites if not self.is_linear(site.producer))

    def sites_for(self, config: Any) -> tuple[Site, ...]:
        """The sites that hold for this configuration."""
        return tuple(site for site in self.sites if site.when(config))


@dataclass(frozen=True)
class BlockContext:
    """One block of one model: block number `index` of `blocks`, of a family, with its configuration.

    The paths of this `architecture` are those of the block, without `*`, and `attentions` where it computes attention.
    """

    architecture: Architecture
    attentions: tuple[str, ...]
    config: Any
    index: int
    blocks: int

    @classmethod
    def of(cls, architecture: Architecture, model: Any, index: int) -> "BlockContext":
        """That of a block in a model; its linears may have been replaced already."""
        blocks = architecture.block_list(model)
        block = blocks[index]

        def found(patterns: Sequence[str]) -> tuple[str, ...]:
            return tuple(path for pattern in patterns for path in _expand(block, pattern) if _has(block, path))

        sites = (
            replace(site, producer=producer, consumers=_expand_all(block, site.consumers, number))
            for site in architecture.sites
            for number, producer in enumerate(_expand(block, site.producer))
        )
        here = replace(
            architecture,
            linears=found(architecture.linears),
            sites=tuple(site for site in sites if all(_has(block, path) for path in (site.producer, *site.consumers))),
        )
        return cls(here, found([architecture.attention]), model.config, index, len(blocks))

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


def _expand(block: nn.Module, pattern: str) -> list[str]:
    """The paths that a pattern stands for, in the order of the children in the place of its `*`."""
    before, star, after = pattern.partition(".*")
    if not star or not _has(block, before):
        return [pattern]
    return [f"{before}.{name}{after}" for name, _ in block.get_submodule(before).named_children()]


def _expand_all(block: nn.Module, patterns: Sequence[str], number: int) -> tuple[str, ...]:
    """What each pattern stands for at child `number`."""
    return tuple(paths[min(number, len(paths) - 1)] for paths in (_expand(block, each) for each in patterns))


def _has(block: nn.Module, path: str) -> bool:
    """Whether a block has a module at a path that is more than a place for one."""
    try:
        return not isinstance(block.get_submodule(path), nn.Identity)
    except AttributeError:
        return False
