"""The input of linears: a tensor that is transformed online, then rounded.

Linears that read the same tensor share one of these, so that it is transformed and rounded once for all of them.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from quept.config import Activations
from quept.formats.integers import Tokens
from quept.layers.quantizers import TokenGrid, quantizer
from quept.numerics.hadamard import Rotation
from quept.ops import quantize_tokens, rotate

Made = TypeVar("Made")
OnlineTransform = Callable[[Tensor], Tensor]  # of the last dimension; what is learned makes it a module


@dataclass
class _Kept:
    """A result that readers of one tensor take once each."""

    tensor: weakref.ref[Tensor]
    key: tuple[str, int | None]
    result: Any
    served: set[str] = field(default_factory=set)


class ElasticInput(nn.Module):
    """A tensor on its way into the linears at `readers` (module paths): transformed, then rounded to a bit-width.

    What it learns is its `quantizer`'s.
    """

    def __init__(
        self, spec: Activations, readers: Sequence[str], transform: OnlineTransform | None, device: torch.device
    ) -> None:
        super().__init__()
        self.readers, self.transform = tuple(readers), transform
        self.quantizer = quantizer(spec, device)
        self._kept: _Kept | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copy the module without the tensor that a pass, perhaps another thread's, is reading."""
        return {**self.__dict__, "_kept": None}

    @property
    def spec(self) -> Activations:
        """Bit-widths and kind of the ranges."""
        return self.quantizer.spec

    @property
    def has_token_ranges(self) -> bool:
        """Return whether every token brings its own range along, one for all its channels."""
        return self.spec.range == "token" and self.spec.group_size is None

    def forward(self, hidden: Tensor, bits: int | None, reader: str, unclipped: bool = False) -> Tensor:
        """Return `(..., in)` as the linear at `reader` multiplies it; `bits` None rounds nothing.

        With `unclipped` it is rounded on its whole range: the baseline.
        """
        kind = "unclipped" if unclipped else "rounded"
        return self._once(hidden, (kind, bits), reader, lambda: self._rounded(hidden, bits, unclipped))

    def codes(self, hidden: Tensor, bits: int, reader: str) -> Tokens:
        """Return the rounded tensor as integers, for a product of integers."""

        def quantized() -> Tokens:
            grid: TokenGrid = self.quantizer.kept_grid(bits)
            if isinstance(self.transform, Rotation):
                return quantize_tokens(hidden, grid.clip_ratio, bits, self.transform)
            return quantize_tokens(self.transformed(hidden), grid.clip_ratio, bits)

        return self._once(hidden, ("codes", bits), reader, quantized)

    def transformed(self, hidden: Tensor) -> Tensor:
        """Return `(..., in)` before it is rounded."""
        if isinstance(self.transform, Rotation):
            return rotate(hidden, self.transform)
        return hidden if self.transform is None else self.transform(hidden)

    def _once(self, hidden: Tensor, key: tuple[str, int | None], reader: str, make: Callable[[], Made]) -> Made:
        """Return the result of `make`, made once for all readers of a tensor; none is served twice."""
        if torch.is_grad_enabled() or len(self.readers) == 1:
            return make()
        kept = self._kept
        if kept is None or kept.tensor() is not hidden or kept.key != key or reader in kept.served:
            # The same reader once more: the tensor may have been written to in the meantime.
            kept = self._kept = _Kept(weakref.ref(hidden), key, make())
        kept.served.add(reader)
        if len(kept.served) == len(self.readers):
            self._kept = None
        result: Made = kept.result
        return result

    def _rounded(self, hidden: Tensor, bits: int | None, unclipped: bool) -> Tensor:
        hidden = self.transformed(hidden)
        self.quantizer.observe(hidden)
        rounded: Tensor = self.quantizer(hidden, bits, unclipped)
        return rounded
