"""What plans are searched for: a model, where its blocks are, and inputs to measure it on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quept.layers import ElasticLinear
from quept.layers.keyvalues import KeyValues
from quept.layers.passthrough import Passthrough
from quept.models import architecture_of

TOKENS_PER_BATCH = 2048
IMAGES_PER_BATCH = 64


@dataclass(frozen=True)
class SearchTarget:
    """A model with elastic layers and the inputs it is measured on; nothing here knows what the inputs are.

    Attributes:
        model: the model, in evaluation mode.
        blocks: its blocks in order. Each is called with the hidden states first, and what one gives the next one gets.
        inputs: batches, of whatever `logits` takes.
        logits: runs `model` on a batch; the logits, `(rows, classes)`, of as many rows as count alike.
        outputs: how many things a block returns, or 0 where it is the hidden states alone.
    """

    model: Any
    blocks: nn.ModuleList
    inputs: Sequence[Any]
    logits: Callable[[Any], Tensor]
    outputs: int = 0

    def parts(self) -> list[tuple[int, dict[str, nn.Module]]]:
        """What has a width, linears and then attentions by path, with the first block that a change of it concerns.

        What is in no block comes first, with block 0.
        """
        within = [_parts_of(block) for block in self.blocks]
        inside = {path for parts in within for path in parts}
        outside = {path: part for path, part in _parts_of(self.model).items() if path not in inside}
        return [(0, outside), *enumerate(within)] if outside else list(enumerate(within))

    @contextmanager
    def entered_at(self, index: int, hidden: Tensor | None) -> Iterator[None]:
        """Within: the model begins with block `index`, which gets `hidden`; what is before it does not run.

        Block 0 has all before it: there the model runs as it is, and `hidden` is not used.
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
        """The logits of a batch, and the hidden states that block `until` gets; None for block 0."""
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
        """The logits of a batch whose hidden states in front of block `index` are known."""
        with self.entered_at(index, hidden):
            return self.logits(batch)


def search_target(model: Any, samples: Tensor) -> SearchTarget:
    """A model on samples as it takes them: token windows `(samples, tokens)`, or images `(samples, channels, ...)`.

    A causal language model has a row for every position's prediction, an image classifier one for every image.
    """
    architecture = architecture_of(model.config.model_type)
    size = max(1, TOKENS_PER_BATCH // samples.shape[1]) if architecture.predicts_tokens else IMAGES_PER_BATCH

    def logits(batch: Tensor) -> Tensor:
        found: Tensor = model(**architecture.arguments(batch.to(model.device))).logits
        return found.flatten(0, -2)

    return SearchTarget(model, architecture.block_list(model), torch.split(samples, size), logits, architecture.outputs)


def rows_of(model: Any, samples: Tensor) -> int:
    """How many predictions a model makes on samples."""
    return samples.numel() if architecture_of(model.config.model_type).predicts_tokens else len(samples)


def _parts_of(module: nn.Module) -> dict[str, nn.Module]:
    """Those that there is a choice of widths for."""
    found = [part for part in module.modules() if isinstance(part, ElasticLinear | KeyValues)]
    found = [part for part in found if isinstance(part, KeyValues) or not part.spec.fixed]
    linears_first = sorted(found, key=lambda part: isinstance(part, KeyValues))
    return {part.path: part for part in linears_first}
