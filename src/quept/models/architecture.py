"""A model family as data.

A model is a list of blocks. A block has linears to quantize, groups of linears that read the same tensor, and sites at
which a per-channel scale can move. A `Task` says what the family's models do. Nothing outside this package asks which
family a model belongs to.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from quept.errors import InvalidInput
from quept.models.paths import expand, expand_together, find, is_present
from quept.models.sites import Residual, Site
from quept.models.task import Task
from quept.models.text_generation import TEXT_GENERATION

GUIDE = "docs/adding-an-architecture.md"


@dataclass(frozen=True)
class Architecture:
    """One model family of transformers.

    Paths in a block may hold one `*`, which stands for every child in its place; a block that lacks a path is passed
    over, as long as another block has it or it is `optional`.

    Attributes:
        model_type: transformers' `model_type`.
        blocks: path of the `nn.ModuleList` of blocks, from the model with its head.
        linears: the linears to quantize, paths in a block.
        sites: where smoothing, reparameterization and rotation may move a scale.
        shared_inputs: groups of linears that read the same tensor, such as queries, keys and values. Their input is
            rounded once, and they have one bit-width in plans and while mixing.
        attention: the module that computes attention, a path in a block.
        task: what models of the family do.
        outer: linears, and convolutions of patches that do not overlap, in front of the blocks and behind them, which
            recipes with `outer_bits` quantize; paths in the model.
        outputs: length of the tuple that a block returns, the hidden states first; 0 where it returns these alone.
        residual: the residual stream; None where norms stand between the linears and the stream.
        norm_offset: what the norms add to their weight before they multiply by it (Gemma: 1).
        optional: those of all these paths that only some models of the family have.

    Raises `InvalidInput` for paths that are no tuples of strings, for `shared_inputs` that are not in `linears` or
    name a linear twice, and where the consumers of a site are not in one group.
    """

    model_type: str
    blocks: str
    linears: tuple[str, ...]
    sites: tuple[Site, ...] = ()
    shared_inputs: tuple[tuple[str, ...], ...] = ()
    attention: str = "self_attn"
    task: Task = TEXT_GENERATION
    outer: tuple[str, ...] = ()
    outputs: int = 0
    residual: Residual | None = None
    norm_offset: float = 0.0
    optional: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.task, Task):
            raise self._error(f"task is {self.task!r}; give a Task, such as quept.models.TEXT_GENERATION")
        groups = {f"shared_inputs[{index}]": group for index, group in enumerate(self.shared_inputs)}
        for name, paths in {"linears": self.linears, "outer": self.outer, "optional": self.optional, **groups}.items():
            if not isinstance(paths, tuple) or not all(isinstance(path, str) for path in paths):
                raise self._error(f"{name} is {paths!r}; give a tuple of paths")
        self._check_shared_inputs()

    def block_list(self, model: nn.Module) -> nn.ModuleList:
        """Return the list of blocks of a model of this family; raises `InvalidInput` where `blocks` is no such list."""
        blocks = find(model, self.blocks)
        if not isinstance(blocks, nn.ModuleList):
            found = "is missing" if blocks is None else f"is a {type(blocks).__name__}"
            raise self._error(f"blocks is {self.blocks!r}, which {found} in {type(model).__name__}; name a ModuleList")
        return blocks

    def block_path(self, index: int) -> str:
        """Return the module path of block `index` in the model."""
        return f"{self.blocks}.{index}"

    def outer_layers(self, model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
        """Return the layers of `outer` that a model, or a part of one, has, by path."""
        found = {path: module for path, module in model.named_modules() if path in self.outer}
        return {path: module for path, module in found.items() if isinstance(module, nn.Linear | nn.Conv2d)}

    def keys(self, config: Any) -> tuple[int, int]:
        """Return the number of key heads and the channels of each."""
        heads: int = config.num_attention_heads
        size: int = getattr(config, "head_dim", None) or config.hidden_size // heads
        return getattr(config, "num_key_value_heads", None) or heads, size

    def is_linear(self, path: str) -> bool:
        """Return whether the module at `path` in a block is one of the linears to quantize (else a norm)."""
        return path in self.linears

    @property
    def inputs(self) -> tuple[tuple[str, ...], ...]:
        """The tensors that linears multiply, each as the linears that read it, in the order of `linears`."""
        return tuple(dict.fromkeys(map(self._group, self.linears)))

    @property
    def float32_parameters(self) -> tuple[str, ...]:
        """Parameters of a block that need float32 to take a scale in: powers of two are not exact beside an offset."""
        if not self.norm_offset:
            return ()
        return tuple(f"{site.producer}.weight" for site in self.sites if not self.is_linear(site.producer))

    def sites_for(self, config: Any) -> tuple[Site, ...]:
        """Return the sites that hold for this configuration."""
        return tuple(site for site in self.sites if site.when(config))

    def with_linears(self, linears: Iterable[str]) -> "Architecture":
        """Return the architecture with these linears alone; groups that share an input keep those of them."""
        kept = tuple(linears)
        groups = (tuple(path for path in group if path in kept) for group in self.shared_inputs)
        return replace(self, linears=kept, shared_inputs=tuple(group for group in groups if len(group) > 1))

    def in_block(self, block: nn.Module) -> "Architecture":
        """Return the architecture with the paths that a block has, and without `*`."""
        patterns = (path for pattern in self.linears for path in expand(block, pattern))
        sites = (
            replace(site, producer=producer, consumers=tuple(consumers))
            for site in self.sites
            for producer, *consumers in expand_together(block, (site.producer, *site.consumers))
        )
        groups = (group for patterns in self.shared_inputs for group in expand_together(block, patterns))
        everything = replace(
            self,
            linears=tuple(patterns),
            sites=tuple(site for site in sites if all(is_present(block, path) for path in _paths_of(site))),
            shared_inputs=tuple(groups),
        )
        return everything.with_linears(path for path in everything.linears if is_present(block, path))

    def shared_input_groups(self, model: nn.Module) -> list[tuple[str, ...]]:
        """Return the linears of a model that read the same tensor, by module path: engines run them at one bit-width.

        A linear with an input of its own is a group of one.
        """
        return [
            tuple(f"{self.block_path(index)}.{path}" for path in group)
            for index, block in enumerate(self.block_list(model))
            for group in self.in_block(block).inputs
        ]

    def check(self, model: nn.Module) -> None:
        """Raise `InvalidInput` for paths that a model does not have, and for linears that are no linear layers."""
        blocks = self.block_list(model)
        if not len(blocks):
            raise self._error(f"the list of blocks at {self.blocks!r} is empty in {type(model).__name__}")
        missing = [path for path in self._paths_in_block() if not any(_exists(block, path) for block in blocks)]
        missing = [f"{self.block_path(0)}.{path}" for path in missing if path not in self.optional]
        missing += [path for path in self.outer if path not in self.optional and find(model, path) is None]
        if missing:
            raise self._error(
                f"{type(model).__name__} has no {', '.join(missing)}; correct the path, or list it in `optional` if "
                "only some models of the family have it"
            )
        for index, block in enumerate(blocks):
            for path in self.in_block(block).linears:
                weight = getattr(block.get_submodule(path), "weight", None)
                if not isinstance(weight, Tensor) or weight.dim() != 2:
                    kind = type(block.get_submodule(path)).__name__
                    raise self._error(f"{self.block_path(index)}.{path} in linears is a {kind}, not a linear layer")

    def _check_shared_inputs(self) -> None:
        shared = [path for group in self.shared_inputs for path in group]
        for path in shared:
            if path not in self.linears:
                raise self._error(f"shared_inputs name {path!r}, which is not in linears; add it there or leave it out")
            if shared.count(path) > 1:
                raise self._error(f"shared_inputs name {path!r} twice; a linear reads one tensor, so name it once")
        for site in self.sites:
            consumers = [path for path in site.consumers if path in self.linears]
            if len({self._group(path) for path in consumers}) > 1:
                raise self._error(
                    f"the consumers of {site.producer!r}, {', '.join(consumers)}, read one tensor but are not in one "
                    "group of shared_inputs; add them as a group"
                )

    def _paths_in_block(self) -> Iterator[str]:
        """Yield every path in a block that the architecture names, each once."""
        paths = [*self.linears, self.attention, *(path for site in self.sites for path in _paths_of(site))]
        yield from dict.fromkeys([*paths, *(self.residual.writers if self.residual else ())])

    def _group(self, path: str) -> tuple[str, ...]:
        """Return the linears that read the same tensor as the linear at `path`."""
        return next((group for group in self.shared_inputs if path in group), (path,))

    def _error(self, problem: str) -> InvalidInput:
        return InvalidInput(f"In the architecture {self.model_type!r}, {problem} (see {GUIDE}).")


def _paths_of(site: Site) -> tuple[str, ...]:
    return (site.producer, *site.consumers)


def _exists(block: nn.Module, pattern: str) -> bool:
    """Return whether a block has a module, or a placeholder for one, at one of the paths of a pattern."""
    return any(find(block, path) is not None for path in expand(block, pattern))
