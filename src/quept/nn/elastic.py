"""A linear layer that runs at every width of a set."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quept.nn.inputs import ElasticInput
from quept.nn.residency import DerivedWeights
from quept.nn.weight import ElasticWeight
from quept.numerics import integer
from quept.spec import WeightSpec


def weight_of(linear: nn.Module) -> Tensor:
    """The weight as `(out, in)`, a view, also of transformers' `Conv1D`, which stores `(in, out)`."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight if isinstance(linear, nn.Linear | ElasticLinear) else weight.t()


class ElasticLinear(ElasticWeight):
    """`x @ W_b.T + bias`, with `W_b` derived for the width `bits`.

    Beside those of the weight it has the parameters
        bias: `(out,)` or absent, in the checkpoint's dtype.
        input: what its inputs go through first, shared with the linears that read the same tensor; or absent.
    """

    bits: int | None
    activation_bits: int | None
    product_dtype: torch.dtype | None  # of the matrix product while training; None leaves it to the inputs
    bias: nn.Parameter | None

    def __init__(
        self, weight: Tensor, bias: Tensor | None, spec: WeightSpec, path: str, input: ElasticInput | None = None
    ) -> None:
        super().__init__(weight, spec, path)
        self.bits = self.activation_bits = None
        self.product_dtype = None
        self.integers = False  # whether integer products may be used
        self.override: Tensor | None = None
        self.residency: DerivedWeights | None = None
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.input = input

    @classmethod
    def from_linear(cls, linear: nn.Module, spec: WeightSpec, path: str, input: ElasticInput | None = None) -> Self:
        """From `nn.Linear` or transformers' `Conv1D`, whose weight is `(in, out)`."""
        bias = linear.bias
        assert bias is None or isinstance(bias, Tensor)
        weight = weight_of(linear).detach().contiguous()
        return cls(weight, None if bias is None else bias.detach(), spec, path, input)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)` at the current widths."""
        if self._multiplies_integers(hidden):
            return self._integer_product(hidden)
        if self.input is not None:
            hidden = self.input(hidden, self.activation_bits, self.path)
        weight = self.current_weight()
        if self.product_dtype is None:
            return self._product(hidden, weight, self.bias)
        product = self._product(hidden.to(self.product_dtype), weight.to(self.product_dtype), None).to(hidden.dtype)
        return product if self.bias is None else product + self.bias

    def current_weight(self) -> Tensor:
        """The weight in force: an override, the master (`bits` is None), or the one derived for `bits`."""
        if self.override is not None:
            return self.override
        bits = self.bits
        if bits is None:
            if self._kept is None:
                return self.weight
            assert self.master_bits is not None
            bits = self.master_bits
        return (
            self.derive(bits) if self.residency is None else self.residency.get(self.path, bits, self._derive_detached)
        )

    def _multiplies_integers(self, hidden: Tensor) -> bool:
        """Whether codes are multiplied instead of what they stand for: where that is possible."""
        if self.bits is None or self.activation_bits is None or self.residency is None or not self.integers:
            return False
        if self.override is not None or torch.is_grad_enabled() or self.scales_per_row(self.bits) > 1:
            return False
        assert self.input is not None
        if self.input.quantizer.override is not None or not self.input.has_token_ranges:
            return False
        return self.in_features <= integer.LARGEST_IN and integer.supported(hidden.device)

    def _product(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(hidden, weight, bias)

    def _integer_product(self, hidden: Tensor) -> Tensor:
        assert self.bits is not None
        assert self.activation_bits is not None
        assert self.input is not None
        assert self.residency is not None
        tokens = self.input.codes(hidden, self.activation_bits, self.path)
        weight = self.residency.get(self.path, self.bits, self._integer_weight, form="integers")
        return integer.integer_linear(tokens, weight, self.bias, hidden.dtype)

    def _integer_weight(self, bits: int) -> integer.IntegerWeight:
        with torch.inference_mode(False), torch.no_grad():
            codes, grid = self.codes(bits)
            scale, zero_point = grid.scale.flatten(), grid.zero_point.flatten()
            return integer.IntegerWeight.of(codes.squeeze(1), scale, zero_point, self.device)

    def _derive_detached(self, bits: int) -> Tensor:
        # Kept weights outlive the call, and one made in inference mode could not be used outside it.
        with torch.inference_mode(False), torch.no_grad():
            return self.derive(bits)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        if self.residency is not None:
            self.residency.forget(self.path)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.residency is not None:
            self.residency.forget(self.path)

    def extra_repr(self) -> str:
        """Shape, widths and rank, for `print(model)`."""
        widths = ",".join(map(str, self.spec.groups.bits))
        rank = self.spec.adapter.total_rank(self.spec.groups)
        return f"in={self.in_features}, out={self.out_features}, widths={widths}, rank={rank}"
