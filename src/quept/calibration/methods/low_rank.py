"""MB-CLoRA: one pair of low-rank factors, of which each bit group reads a slice (paper, section on MB-CLoRA)."""

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from quept.calibration.methods.base import Draft, Method, ParameterGroup, Weight, straight_through
from quept.calibration.optimizer import ADAM
from quept.config import Reconstruction
from quept.formats import eight_bit
from quept.formats.derivation import adapted
from quept.layers.weight import FrozenWeight


class LowRank(Method):
    """Factors `A: (R, in)`, drawn Kaiming-uniformly, and `B: (out, R)`, zero at the start, float32.

    Their product enters in weight space, `Q(W + B A)`, or in scale space, as an offset in steps (supplement, table 1).
    """

    def __init__(self, weight: Weight) -> None:
        super().__init__(weight)
        rank = weight.spec.adapter.total_rank(weight.spec.groups)
        self.down, self.up = self.learnable(rank, weight.in_features), self.learnable(weight.out_features, rank)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw `A`, and set `B` to zero."""
        bound = self.weight.in_features**-0.5
        self.down.copy_(torch.empty(self.down.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator))
        self.up.zero_()

    def parameters(self, settings: Reconstruction, draws: Mapping[int, float]) -> Iterable[ParameterGroup]:
        """Return both factors."""
        yield ParameterGroup(ADAM, settings.adapter_learning_rate, [self.down, self.up])

    def apply(self, draft: Draft) -> None:
        """Add the product to the weight, or shift its steps."""
        adapter = self.product(draft.bits)
        if adapter is None:
            return
        if self.weight.spec.adapter.entry == "weight":
            draft.weight = draft.weight + adapter
        else:
            draft.rounding = adapted(adapter, "scale", self.weight.inputs_per_scale(draft.bits))

    def freeze(self, frozen: FrozenWeight) -> None:
        """Keep the factors in floats, or in the 8 bits of a store."""
        if frozen.store is not None:
            frozen.store.round_factors(self.up, self.down)
        else:
            frozen.A.copy_(self.down)
            frozen.B.copy_(self.up)

    def state(self) -> Iterable[Tensor]:
        """Return both factors."""
        return self.down, self.up

    def product(self, bits: int) -> Tensor | None:
        """Return `B A`, `(out, in)`, of the components that `bits` reads, as it will be stored; None without."""
        adapter = self.weight.spec.adapter
        columns = adapter.columns(bits, self.weight.spec.groups)
        if columns.stop == 0:
            return None
        up, down = self.up[:, columns], self.down[columns]
        if adapter.isolated and up.requires_grad:
            # The forward pass must stay the same product, so the gradient is what is cut.
            shared = columns.stop - adapter.rank
            for factor, dimension in ((up, 1), (down, 0)):
                hook = partial(_without_leading, dimension=dimension, count=shared)
                factor.register_hook(hook)  # type: ignore[no-untyped-call]
        product = up @ down
        if self.weight.spec.store.master_bits is None:
            return product
        return straight_through(product, self._stored_product(columns))

    @torch.no_grad()
    def _stored_product(self, columns: slice) -> Tensor:
        up, down, scale = eight_bit.round_factors(self.up, self.down)
        return eight_bit.product(up[:, columns], down[columns], scale)


def _without_leading(gradient: Tensor, dimension: int, count: int) -> Tensor:
    """Return a copy with the first `count` entries along `dimension` set to zero."""
    gradient = gradient.clone()
    gradient.narrow(dimension, 0, count).zero_()
    return gradient
