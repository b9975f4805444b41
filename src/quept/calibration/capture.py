"""The model around its blocks: their inputs, the calls it makes to them, and predictions from their outputs."""

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from quept.layers.passthrough import Passthrough
from quept.layers.tensors import copy_sharing
from quept.models import Architecture
from quept.models.checkpoint import cast_parameters, quiet


@dataclass(frozen=True)
class BlockCall:
    """Everything that the model passes to a block beside the hidden states: masks, rotary embeddings, flags.

    Samples all have the same length and no padding, so these do not depend on the sample; they are kept for a
    batch of one and broadcast.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def to(self, device: torch.device) -> "BlockCall":
        """Return the call with its tensors on `device`."""
        return BlockCall(_move(self.args, device), _move(dict(self.kwargs), device))

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run a block on `(batch, tokens, hidden)` as the model would."""
        output = block(hidden, *self.args, **self.kwargs)
        states: Tensor = output[0] if isinstance(output, tuple) else output
        return states


class _AllBlocksCalled(Exception):
    """All blocks were called, and what follows is not of interest."""


class _Recorder(Passthrough):
    """Stands in for a block, and records how it is called.

    One that `stops` ends the run of the model by raising `_Reached`: hidden states may not be of the shape that what
    follows expects.
    """

    def __init__(self, block: nn.Module, outputs: int) -> None:
        super().__init__(block, outputs=outputs)
        self.stops = False
        self.call: BlockCall | None = None
        self.hidden: Tensor | None = None

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.call, self.hidden = BlockCall(args, kwargs), hidden
        if self.stops:
            raise _AllBlocksCalled
        return super().forward(hidden)


def _without_blocks(
    model: Any, architecture: Architecture, part: Any, dtype: torch.dtype
) -> tuple[Any, list[_Recorder]]:
    """Return a copy of `part` (the model, or its base) in `dtype` with recorders in place of its blocks, and these.

    While it is made, the model's blocks are out of their place: nothing else may run the model at that moment.
    """
    blocks = architecture.block_list(model)
    parent, _, name = architecture.blocks.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, name, nn.ModuleList(_Recorder(block, architecture.outputs) for block in blocks))
    try:
        copied = copy.deepcopy(part)
    finally:
        setattr(owner, name, blocks)
    cast_parameters(copied, dtype).eval().requires_grad_(False)
    return copied, [module for module in copied.modules() if isinstance(module, _Recorder)]


class ModelStem:
    """The part of a model in front of its blocks, in the compute dtype, on the CPU.

    `samples` are what the model takes: token windows `(batch, tokens)`, or images `(batch, channels, height, width)`.
    """

    def __init__(self, model: Any, architecture: Architecture, dtype: torch.dtype) -> None:
        self._base, self._recorders = _without_blocks(model, architecture, model.base_model, dtype)
        self._architecture = architecture
        self._recorders[-1].stops = True
        # What is in it under the names that it has in the whole model.
        self.part = nn.ModuleDict({model.base_model_prefix: self._base})

    @torch.no_grad()
    def hidden_states(self, samples: Tensor) -> Tensor:
        """Return the first block's input, `(batch, tokens, hidden)`."""
        with quiet(), suppress(_AllBlocksCalled):
            self._base(**self._architecture.task.arguments(samples))
        hidden = self._recorders[0].hidden
        assert hidden is not None
        return hidden

    def calls(self, samples: Tensor) -> list[BlockCall]:
        """Return the calls that the model makes to its blocks for samples of this size."""
        self.hidden_states(samples[:1])
        return [recorder.call for recorder in self._recorders if recorder.call is not None]


class ModelHead:
    """The part of a model behind its blocks, final norm and head, in the compute dtype, on `device`.

    `sample` is one of what the model takes, `(1, ...)`. `per_token` says whether there is a prediction for every token,
    else it is one for each sample. Threads may call it at the same time.
    """

    def __init__(
        self, model: Any, architecture: Architecture, dtype: torch.dtype, device: torch.device, sample: Tensor
    ) -> None:
        self.model, _ = _without_blocks(model, architecture, model, dtype)
        self.model.to(device)
        self._architecture, self._sample = architecture, sample.to(device)
        self._unused = copy_sharing(self.model)  # what copies are made of: another thread may be running any other
        self._spare, self._lock = [self.model], Lock()
        self.per_token = architecture.task.per_token
        self.classes = architecture.task.classes(model.config)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits, `(batch, tokens, classes)` or `(batch, classes)`, of the last block's output."""
        placeholder = self._sample[:, : hidden.shape[1]] if self.per_token else self._sample
        placeholders = placeholder.expand(len(hidden), *placeholder.shape[1:])
        with self._lock:
            model = self._spare.pop() if self._spare else copy_sharing(self._unused)
        first = next(module for module in model.modules() if isinstance(module, _Recorder))
        first.replacement = hidden
        try:
            with quiet():
                logits: Tensor = model(**self._architecture.task.arguments(placeholders)).logits
            return logits
        finally:
            first.replacement = None
            with self._lock:
                self._spare.append(model)


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_move(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _move(item, device) for key, item in value.items()}
    return value
