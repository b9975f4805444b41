"""A block's forward pass while it trains, and the weights it runs with: as they are, or compiled."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quept.calibration.capture import BlockCall
from quept.layers import ElasticLinear
from quept.models.checkpoint import first_line
from quept.numerics import affine

# Hidden values (tokens x hidden size, over all passes of a run) from which on compiling takes less than it saves.
WORTH_COMPILING = 1_000_000_000


class ForwardPass(Protocol):
    """Runs a block, and derives the weights of its linears, both with gradients."""

    def __call__(self, call: BlockCall, module: nn.Module, hidden: Tensor) -> Tensor:
        """The block's output, `(batch, tokens, hidden)`."""

    def weight(self, layer: ElasticLinear, bits: int) -> Tensor:
        """The layer's weight at a width, `(out, in)`."""

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
        """The block's output, `(batch, tokens, hidden)`."""
        return call(module, hidden)

    def weight(self, layer: ElasticLinear, bits: int) -> Tensor:
        """The layer's weight at a width, `(out, in)`."""
        return layer.derive(bits)


class CompiledForward(EagerForward):
    """The same, compiled by PyTorch: once for all blocks of a kind, because weights are inputs to the code.

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
        """The block's output, `(batch, tokens, hidden)`."""
        output = self._tried(self._run, call, module, hidden)
        return super().__call__(call, module, hidden) if output is None else output

    def weight(self, layer: ElasticLinear, bits: int) -> Tensor:
        """The layer's weight at a width, `(out, in)`; not compiled with an adapter, or symmetric."""
        if bits not in layer.offsets or layer.has_adapter(bits) or bits in layer.spec.granularity.symmetric_bits:
            return super().weight(layer, bits)
        offset, clip_ratios = layer.offsets[bits], layer.clip_ratios(bits)
        # A row per scale, of whatever layer and width, so that one compilation serves all.
        rows = [values.flatten(0, 1) for values in (*layer.frozen_range(bits), offset)]
        quantized = self._tried(self._quantize, *rows, clip_ratios.flatten(1).unsqueeze(-1), 2**bits - 1)
        return super().weight(layer, bits) if quantized is None else layer.joined(quantized.view_as(offset))

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
    """`affine.fake_quantize` in operations that a compiler can fuse; equal to it up to float rounding.

    Of a weight `(scales, inputs)`, with ranges `(scales, 1)` and the shares of them that are kept, `(2, scales, 1)`.
    """
    low_clip_ratio, high_clip_ratio = clip_ratios
    low, high = low * low_clip_ratio, high * high_clip_ratio
    scale = (high - low) / maximum
    scale = torch.where(scale > 0, scale, 1.0)
    zero_point = affine.round_straight_through(-low / scale)
    code = affine.clamp(affine.round_straight_through(weight / scale + offset) + zero_point, 0, maximum)
    return (code - zero_point) * scale
