"""Rotary embeddings whose frequencies depend on the length of a sequence, for several threads.

transformers keeps the frequencies of the longest sequence so far in the module ("dynamic"), or those of the latest
("longrope"): another thread's pass would take them, and so would a later, shorter sequence.
"""

import copy
from typing import Any

from torch import nn

CHANGING = ("dynamic", "longrope")  # types of rotary embeddings in transformers


class RotaryPerPass(nn.Module):
    """A rotary embedding that every pass computes by a copy of its own, so that none changes it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the embedding gives in the state in which it was made."""
        own = copy.copy(self.inner)
        own._buffers = {
            name: None if buffer is None else buffer.clone() for name, buffer in self.inner._buffers.items()
        }
        return own(*args, **kwargs)


def make_rotary_per_pass(model: nn.Module) -> None:
    """Replace, in place, the rotary embeddings of a model that change as they are used."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if _changes(child) and not isinstance(module, RotaryPerPass):
                setattr(module, name, RotaryPerPass(child))


def _changes(module: nn.Module) -> bool:
    kinds = getattr(module, "rope_type", None)
    named = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(isinstance(kind, str) and any(each in kind for each in CHANGING) for kind in named)
