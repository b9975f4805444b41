"""What a tensor goes through before linears read it: an online transform, and rounding per token.

Linears that read the same tensor share one of these, so that it is transformed and rounded once for all of them.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from quept.numerics import activations
from quept.numerics.hadamard import Rotation
from quept.numerics.integer import Tokens, quantize_tokens
from quept.spec import Activations

CLIPPING_START = 4.0  # sigmoid(4) = 0.982: the range starts almost whole

Made = TypeVar("Made")
OnlineTransform = Callable[[Tensor], Tensor]  # of the last dimension; what is learned makes it a module


class TokenGrid(NamedTuple):
    """The share of each token's range that is kept, and the highest code, both scalars."""

    share: Tensor
    highest: Tensor


@dataclass
class _Kept:
    """A result that readers of one tensor take once each."""

    tensor: weakref.ref[Tensor]
    key: tuple[str, int | None]
    result: Any
    served: set[str] = field(default_factory=set)


class ElasticInput(nn.Module):
    """A tensor on its way into the linears at `readers` (module paths): transformed, then rounded to `bits`.

    Parameters: `clipping.<bits>`, the logit of the share of every token's range that is kept, `(1,)`, float32.
    """

    def __init__(
        self, spec: Activations, readers: Sequence[str], transform: OnlineTransform | None, device: torch.device
    ) -> None:
        super().__init__()
        self.spec, self.readers, self.transform = spec, tuple(readers), transform
        self.clipping = nn.ParameterDict(
            {
                str(bits): nn.Parameter(torch.full((1,), CLIPPING_START, device=device), requires_grad=False)
                for bits in spec.bits
            }
        )
        self.override: TokenGrid | None = None
        self._kept: _Kept | None = None

    def forward(self, hidden: Tensor, bits: int | None, reader: str) -> Tensor:
        """`(..., in)` as the linear at `reader` multiplies it; `bits` None rounds nothing."""
        return self._once(hidden, ("rounded", bits), reader, lambda: self._rounded(hidden, bits))

    def codes(self, hidden: Tensor, bits: int, reader: str) -> Tokens:
        """The same as integers, for a product of integers."""

        def quantized() -> Tokens:
            share = self.grid(bits).share
            if isinstance(self.transform, Rotation):
                return quantize_tokens(hidden, share, bits, self.transform)
            return quantize_tokens(self.transformed(hidden), share, bits)

        return self._once(hidden, ("codes", bits), reader, quantized)

    def transformed(self, hidden: Tensor) -> Tensor:
        """`(..., in)` before it is rounded."""
        return hidden if self.transform is None else self.transform(hidden)

    def grid(self, bits: int) -> TokenGrid:
        """Where tokens are rounded at a width; differentiable in the clipping."""
        logit = self.clipping[str(bits)]
        return TokenGrid(torch.sigmoid(logit), logit.new_tensor(float(activations.highest_code(bits))))

    def whole_grid(self, bits: int) -> TokenGrid:
        """The same without clipping: the baseline."""
        return TokenGrid(torch.ones_like(self.clipping[str(bits)]), self.grid(bits).highest)

    @torch.no_grad()
    def search_clipping(self, bits: int, sample: Tensor, importance: Tensor) -> None:
        """Start at the share that rounds `sample`, transformed rows `(tokens, in)`, best; see `best_share`."""
        share = activations.best_share(sample, bits, importance, self.spec.group_size)
        self.clipping[str(bits)].fill_(torch.logit(torch.tensor(share), eps=1e-6).clamp_max(CLIPPING_START))

    @torch.no_grad()
    def reset_clipping(self, bits: int, start: float) -> None:
        """Set the logit of the share at a width."""
        self.clipping[str(bits)].fill_(start)

    def learned(self) -> dict[str, Tensor]:
        """What calibration learns, by name."""
        return {f"clipping.{bits}": value for bits, value in self.clipping.items()}

    def _once(self, hidden: Tensor, key: tuple[str, int | None], reader: str, make: Callable[[], Made]) -> Made:
        """What `make` gives, made once for all readers of a tensor; none is served twice."""
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

    def _rounded(self, hidden: Tensor, bits: int | None) -> Tensor:
        hidden = self.transformed(hidden)
        grid = self.override
        if grid is None:
            if bits is None:
                return hidden
            grid = self.grid(bits)
        return activations.fake_quantize(hidden, grid.share, grid.highest, self.spec.group_size)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move with the model, but stay in float32."""
        before = {bits: value.detach() for bits, value in self.clipping.items()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for bits, value in before.items():
            moved = self.clipping[bits]
            if moved.dtype != value.dtype:
                moved.data = value.to(moved.device)
        return self

    def extra_repr(self) -> str:
        """Widths, for `print(model)`."""
        return f"widths={','.join(map(str, self.spec.bits)) or 'none'}"
