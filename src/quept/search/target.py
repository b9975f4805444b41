"""The target of a search for plans: a model, its blocks, and inputs to measure it on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quept.evaluation.finite import check_finite
from quept.layers import ElasticLinear
from quept.layers.keyvalues import KeyValues
from quept.layers.passthrough import Passthrough
from quept.models import architecture_of


@dataclass(frozen=True)
class SearchTarget:
    """A model with elastic layers, and inputs of any kind to measure it on.

    Attributes:
        model: the model, in evaluation mode.
        blocks: its blocks in order. Each is called with the hidden states first, and returns those for the next.
        inputs: batches, of any type that `logits` takes.
        logits: runs `model` on a batch and returns the logits of all its predictions, `(rows, classes)`.
        outputs: length of the tuple that a block returns; 0 where it returns the hidden states alone.
    """

    model: Any
    blocks: nn.ModuleList
    inputs: Sequence[Any]
    logits: Callable[[Any], Tensor]
    outputs: int = 0

    def parts(self) -> list[tuple[int, dict[str, nn.Module]]]:
        """Return all parts with a choice of bit-widths by path, each with the first block that a change of it concerns.

        Linears come before attentions. Parts outside the blocks come first, with block 0.
        """
        within = [_parts_of(block) for block in self.blocks]
        inside = {path for parts in within for path in parts}
        outside = {path: part for path, part in _parts_of(self.model).items() if path not in inside}
        return [(0, outside), *enumerate(within)] if outside else list(enumerate(within))

    @contextmanager
    def entered_at(self, index: int, hidden: Tensor | None) -> Iterator[None]:
        """Make the model start with block `index` on `hidden` in this context; the blocks before it do not run.

        With block 0 the model runs as it is, and `hidden` is not used.
        """
        before = [self.blocks[position] for position in range(index)]
        try:
            for position, block in enumerate(before):
                self.blocks[position] = Passthrough(block, hidden, self.outputs)
            yield
        finally:
            for position, block in enumerate(before):
                self.blocks[position] = block

    @torch.inference_mode()
    def run(self, batch: Any, until: int) -> tuple[Tensor, Tensor | None]:
        """Return the logits of a batch and the inputs of block `until`, which are None for block 0."""
        if not until:
            return self.logits(batch), None
        seen: list[Tensor] = []
        hook = self.blocks[until].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
        try:
            return self.logits(batch), seen.pop()
        finally:
            hook.remove()

    @torch.inference_mode()
    def run_from(self, index: int, hidden: Tensor | None, batch: Any) -> Tensor:
        """Return the logits of a batch from its hidden states in front of block `index`."""
        with self.entered_at(index, hidden):
            return self.logits(batch)


def search_target(model: Any, samples: Tensor) -> SearchTarget:
    """Return the target for a model of a known family and samples as it takes them, `(samples, ...)`.

    Its logits have a row for every prediction that the model's task makes: one per token, or one per image. They raise
    `InvalidInput` that names the layer where they are not finite.
    """
    architecture = architecture_of(model.config.model_type)
    task = architecture.task

    def logits(batch: Tensor) -> Tensor:
        arguments = task.arguments(batch.to(model.device))
        found: Tensor = model(**arguments).logits
        check_finite(model, found, lambda: model(**arguments))
        return found.flatten(0, -2)

    batches = torch.split(samples, task.batch_size(samples))
    return SearchTarget(model, architecture.block_list(model), batches, logits, architecture.outputs)


def rows_of(model: Any, samples: Tensor) -> int:
    """Return the number of predictions that a model makes on samples."""
    return architecture_of(model.config.model_type).task.predictions(samples)


def _parts_of(module: nn.Module) -> dict[str, nn.Module]:
    """Return the parts of a module that have a choice of bit-widths, by path, linears first."""
    found = [part for part in module.modules() if isinstance(part, ElasticLinear | KeyValues)]
    found = [part for part in found if isinstance(part, KeyValues) or not part.spec.fixed]
    linears_first = sorted(found, key=lambda part: isinstance(part, KeyValues))
    return {part.path: part for part in linears_first}
