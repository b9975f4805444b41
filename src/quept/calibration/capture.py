"""What flows into the blocks: the first block's inputs, and how the model calls each block."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quept.architectures import Architecture
from quept.architectures.checkpoint import cast_parameters, quiet


@dataclass(frozen=True)
class BlockCall:
    """Everything that the model passes to a block beside the hidden states: masks, rotary embeddings, flags.

    Samples all have the same length and no padding, so these do not depend on the sample; they are kept for a
    batch of one and broadcast.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def to(self, device: torch.device) -> "BlockCall":
        """The same call with its tensors on `device`."""
        return BlockCall(_move(self.args, device), _move(dict(self.kwargs), device))

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run a block on `(batch, tokens, hidden)` as the model would."""
        output = block(hidden, *self.args, **self.kwargs)
        states: Tensor = output[0] if isinstance(output, tuple) else output
        return states


class _Recorder(nn.Module):
    """Stands in for a block: records how it is called and hands the hidden states on unchanged."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        # Plain attributes of the block that the model may read while it loops over blocks.
        self.__dict__.update({k: v for k, v in vars(block).items() if k not in vars(self)})
        self.call: BlockCall | None = None
        self.hidden: Tensor | None = None

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.call, self.hidden = BlockCall(args, kwargs), hidden
        return hidden


class Entrance:
    """The part of a model in front of its blocks, in the compute dtype, on the CPU.

    While it is made, the model's blocks are out of their place: nothing else may run the model at that moment.
    """

    def __init__(self, model: Any, architecture: Architecture, dtype: torch.dtype) -> None:
        blocks = architecture.block_list(model)
        recorders = nn.ModuleList(_Recorder(block) for block in blocks)
        parent, _, name = architecture.blocks.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, name, recorders)
        try:
            self._base = copy.deepcopy(model.base_model)
        finally:
            setattr(owner, name, blocks)
        cast_parameters(self._base, dtype).eval()
        self._recorders = [module for module in self._base.modules() if isinstance(module, _Recorder)]

    @torch.no_grad()
    def hidden_states(self, windows: Tensor) -> Tensor:
        """The first block's input for token windows `(batch, tokens)`."""
        with quiet():
            self._base(input_ids=windows, use_cache=False)
        hidden = self._recorders[0].hidden
        assert hidden is not None
        return hidden

    def calls(self, windows: Tensor) -> list[BlockCall]:
        """How the model calls each of its blocks for windows of this length."""
        self.hidden_states(windows[:1])
        return [recorder.call for recorder in self._recorders if recorder.call is not None]


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_move(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _move(item, device) for key, item in value.items()}
    return value
