"""A linear layer that runs at every width of a set."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quept.config import WeightSpec
from quept.formats.packed import PackedWeight, packed_linear, rebuild
from quept.formats.paging import page_out
from quept.layers.cache import Key, Sized, WeightCache
from quept.layers.execution import Execution
from quept.layers.inputs import ElasticInput
from quept.layers.weight import FrozenWeight
from quept.numerics import affine, integer


def weight_of(linear: nn.Module) -> Tensor:
    """The weight as `(out, in)`, a view, also of transformers' `Conv1D`, which stores `(in, out)`."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight if isinstance(linear, nn.Linear | ElasticLinear) else weight.t()


class ElasticLinear(FrozenWeight):
    """`x @ W_b.T + bias`, with `W_b` derived for the width `bits`.

    Beside those of the weight it has the parameters
        bias: `(out,)` or absent, in the checkpoint's dtype.
        input: what its inputs go through first, shared with the linears that read the same tensor; or absent.
    """

    is_matrix = True  # whether `hidden @ weight.T` is all that a forward pass computes
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
        self.execution = Execution()
        self.override: Tensor | None = None
        self.weight_cache: WeightCache | None = None
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.input = input

    @classmethod
    def from_linear(cls, linear: nn.Module, spec: WeightSpec, path: str, input: ElasticInput | None = None) -> Self:
        """From `nn.Linear` or transformers' `Conv1D`, whose weight is `(in, out)`."""
        bias = linear.bias
        assert bias is None or isinstance(bias, Tensor)
        weight = weight_of(linear).detach().contiguous()
        return cls(weight, None if bias is None else bias.detach(), spec, path, input)

    def run_at(self, bits: int | None, activation_bits: int | None) -> None:
        """Set both widths."""
        # Past the setter of modules, which looks for parameters first: with it, most of a switch would be that.
        self.__dict__["bits"], self.__dict__["activation_bits"] = bits, activation_bits

    def forward(self, hidden: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)` at the current widths."""
        if self._multiplies_integers(hidden):
            return self._integer_product(hidden)
        if self.input is not None:
            hidden = self.input(hidden, self.activation_bits, self.path)
        packed = self._packed_weight(hidden)
        if packed is not None:
            # What has been rounded already is not rounded once more.
            exact = self.execution.exact or self.activation_bits is not None
            return packed_linear(hidden, packed, self.bias, exact=exact)
        weight = self.current_weight()
        if self.product_dtype is None:
            return self._product(hidden, weight, self.bias)
        product = self._product(hidden.to(self.product_dtype), weight.to(self.product_dtype), None).to(hidden.dtype)
        return product if self.bias is None else product + self.bias

    def current_weight(self) -> Tensor:
        """The weight in force: an override, the master (`bits` is None), or the one derived for `bits`."""
        if self.override is not None:
            return self.override
        bits = self.coded(self.bits)
        if bits is None:
            return self.weight
        if self.weight_cache is None:
            return self.derive(bits)
        return self.weight_cache.get(Key(self.path, bits, "dense"), self._derive_detached)

    def coded(self, bits: int | None) -> int | None:
        """The width of the codes that are multiplied at `bits`: of a stored master at None; else None without codes."""
        return self.master_bits if bits is None and self.is_stored else bits

    def pack(self, bits: int) -> PackedWeight:
        """The weight at `bits` in as many bits, with its scales and zero points."""
        with torch.inference_mode(False), torch.no_grad():
            inputs = self._inputs_per_scale(bits)
            if self.rebuilds(bits):
                packed = rebuild(self.stored_weight(bits), bits, inputs, self._is_symmetric(bits))
            elif self.store is not None and self.packs_master(bits):
                packed = PackedWeight.of_master(self.store.master, self.store.master_scale)
            else:
                codes, grid = self.codes(bits)
                flat = affine.join_groups(codes, self.in_features)
                packed = PackedWeight.of(flat, grid.scale.squeeze(-1), grid.zero_point.squeeze(-1), bits, inputs)
        if self.is_stored:
            page_out(self.parameters())  # until another width is wanted
        return packed

    def forget_derived(self) -> None:
        """Drop what is resident of this layer's weight at any width."""
        if self.weight_cache is not None:
            self.weight_cache.forget(self.path)

    def form(self, bits: int | None, activation_bits: int | None) -> tuple[Key, Callable[[int], Sized]] | None:
        """What a forward pass at these widths makes resident, and how it is made; None where that is nothing."""
        bits = self.coded(bits)
        if bits is None or self.weight_cache is None:
            return None
        if self._has_integers(bits, activation_bits):
            return Key(self.path, bits, "integers"), self._integer_weight
        if self.execution.packed and self.is_matrix:
            return Key(self.path, bits, "packed"), self.pack
        return Key(self.path, bits, "dense"), self._derive_detached

    def _packed_weight(self, hidden: Tensor) -> PackedWeight | None:
        """The packed weight to multiply by; None where there is none, or a gradient is needed."""
        bits = self.coded(self.bits)
        if bits is None or not (self.execution.packed and self.is_matrix) or self.override is not None:
            return None
        if torch.is_grad_enabled() and hidden.requires_grad:
            return None
        return (
            self.pack(bits)
            if self.weight_cache is None
            else self.weight_cache.get(Key(self.path, bits, "packed"), self.pack)
        )

    def _multiplies_integers(self, hidden: Tensor) -> bool:
        """Whether codes are multiplied instead of what they stand for: where that is possible."""
        if not self.execution.integers or self.override is not None or torch.is_grad_enabled():
            return False
        if self.bits is None or self.weight_cache is None or not self._has_integers(self.bits, self.activation_bits):
            return False
        assert self.input is not None
        return self.input.quantizer.override is None

    def _has_integers(self, bits: int, activation_bits: int | None) -> bool:
        """Whether these widths can be multiplied as integers here."""
        if not (self.execution.integers and self.is_matrix) or activation_bits is None:
            return False
        if self.scales_per_row(bits) > 1 or self.in_features > integer.LARGEST_IN:
            return False
        return self.input is not None and self.input.has_token_ranges and integer.supported(self.device)

    def _product(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(hidden, weight, bias)

    def _integer_product(self, hidden: Tensor) -> Tensor:
        assert self.bits is not None
        assert self.activation_bits is not None
        assert self.input is not None
        assert self.weight_cache is not None
        tokens = self.input.codes(hidden, self.activation_bits, self.path)
        weight = self.weight_cache.get(Key(self.path, self.bits, "integers"), self._integer_weight)
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
        self.forget_derived()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.forget_derived()

    def extra_repr(self) -> str:
        """Shape, widths and rank, for `print(model)`."""
        widths = ",".join(map(str, self.spec.groups.bits))
        rank = self.spec.adapter.total_rank(self.spec.groups)
        return f"in={self.in_features}, out={self.out_features}, widths={widths}, rank={rank}"
