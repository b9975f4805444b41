"""A block's forward pass while it trains: as it is, or compiled."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quept.architectures.checkpoint import first_line
from quept.calibration.capture import BlockCall

# Hidden values (tokens x hidden size, over all passes of a run) from which on compiling takes less than it saves.
WORTH_COMPILING = 1_000_000_000

Pass = Callable[[BlockCall, nn.Module, Tensor], Tensor]


def plain_pass(call: BlockCall, module: nn.Module, hidden: Tensor) -> Tensor:
    """The block as transformers wrote it."""
    return call(module, hidden)


class CompiledPass:
    """The same, compiled by PyTorch: once for all blocks of a kind, because weights are inputs to the code.

    Where nothing can be compiled, for lack of a compiler mostly, `note` is told once and the plain pass takes over.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._compiled: Pass | None = torch.compile(_run, dynamic=False)

    def __call__(self, call: BlockCall, module: nn.Module, hidden: Tensor) -> Tensor:
        """`(batch, tokens, hidden)` to the same shape."""
        if self._compiled is not None:
            try:
                return self._compiled(call, module, hidden)
            except Exception as error:  # whatever the compiler behind it makes of this machine
                self._note(f"Training is not compiled ({first_line(error)}), which is slower but changes nothing else.")
                self._compiled = None
        return plain_pass(call, module, hidden)


def _run(call: BlockCall, module: nn.Module, hidden: Tensor) -> Tensor:
    # Apart from plain_pass, whose code the compiler must be free to leave alone.
    return call(module, hidden)
