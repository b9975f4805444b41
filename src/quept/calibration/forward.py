"""A block's forward pass while it trains, and the weights it runs with: as they are, or compiled."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quept.calibration.capture import BlockCall
from quept.calibration.trainable import TrainableWeight
from quept.models.checkpoint import first_line
from quept.numerics import affine

# Hidden values (tokens x hidden size, over all passes of a run) from which on compiling takes less than it saves.
WORTH_COMPILING = 1_000_000_000


class ForwardPass(Protocol):
    """Runs a block, and derives the weights of its linears, both with gradients."""

    def __call__(self, call: BlockCall, module: nn.Module, hidden: Tensor) -> Tensor:
        """Return the block's output, `(batch, tokens, hidden)`."""

    def weight(self, weight: TrainableWeight, bits: int) -> Tensor:
        """Return a weight at `bits`, `(out, in)`."""

    @property
    def compiles(self) -> bool:
        """Whether code may be compiled the first time that a block runs, which one thread should do."""

    def in_force(self) -> AbstractContextManager[object]:
        """Return the context to run in; several threads may do so at the same time."""


class EagerForward:
    """The block as transformers wrote it, and the layer's own derivation."""

    compiles = False

    def in_force(self) -> AbstractContextManager[object]:
        """Nothing has to be set."""
        return nullcontext()

    def __call__(self, call: BlockCall, module: nn.Module, hidden: Tensor) -> Tensor:
        """Return the block's output, `(batch, tokens, hidden)`."""
        return call(module, hidden)

    def weight(self, weight: TrainableWeight, bits: int) -> Tensor:
        """Return a weight at `bits`, `(out, in)`."""
        return weight.derive(bits)


class CompiledForward(EagerForward):
    """The forward pass compiled by PyTorch: once for all blocks of a kind, because weights are inputs to the code.

    Where nothing can be compiled, for lack of a compiler mostly, `note` is told once and the plain pass takes over.
    """

    compiles = True

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._lock = note, Lock()
        self._run: Callable[..., Tensor] | None = torch.compile(_run, dynamic=False)
        self._quantize: Callable[..., Tensor] = torch.compile(_quantize, dynamic=True)

    def in_force(self) -> AbstractContextManager[object]:
        """Blocks of one kind share their code, but the first and the last have hooks of their own."""
        found: AbstractContextManager[object] = torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)
        return found

    def __call__(self, call: BlockCall, module: nn.Module, hidden: Tensor) -> Tensor:
        """Return the block's output, `(batch, tokens, hidden)`."""
        output = self._tried(self._run, call, module, hidden)
        return super().__call__(call, module, hidden) if output is None else output

    def weight(self, weight: TrainableWeight, bits: int) -> Tensor:
        """Return a weight at `bits`, `(out, in)`; compiled where offsets and clipping are all that is learned."""
        rows = weight.rows_to_round(bits)
        quantized = None if rows is None else self._tried(self._quantize, *rows, 2**bits - 1)
        if rows is None or quantized is None:
            return super().weight(weight, bits)
        return weight.joined(quantized.view(weight.out_features, -1, rows.weight.shape[1]))

    def _tried(self, compiled: Callable[..., Tensor] | None, *given: Any) -> Tensor | None:
        if self._run is None or compiled is None:
            return None
        try:
            return compiled(*given)
        except Exception as error:  # whatever the compiler behind it makes of this machine
            with self._lock:
                if self._run is not None:
                    self._note(
                        f"Training is not compiled ({first_line(error)}), which is slower but changes nothing else."
                    )
                self._run = None
            return None


def _run(call: BlockCall, module: nn.Module, hidden: Tensor) -> Tensor:
    return call(module, hidden)


def _quantize(weight: Tensor, low: Tensor, high: Tensor, offset: Tensor, clip_ratios: Tensor, maximum: int) -> Tensor:
    """Fake-quantize rows in operations that a compiler can fuse: `affine.fake_quantize` up to float rounding.

    See `RowsToRound` for the shapes.
    """
    low_ratio, high_ratio = clip_ratios
    grid = affine.asymmetric_grid(low * low_ratio, high * high_ratio, maximum)
    code = affine.round_straight_through(weight / grid.scale + offset) + grid.zero_point
    return (affine.clamp(code, 0, maximum) - grid.zero_point) * grid.scale
