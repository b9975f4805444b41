"""A linear layer that runs at every bit-width of a set."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quept import ops
from quept.config import WeightSpec
from quept.formats.integers import LARGEST_IN, IntegerWeight
from quept.formats.packed import PackedWeight
from quept.formats.paging import page_out
from quept.layers import paths
from quept.layers.cache import Key, Sized, WeightCache
from quept.layers.execution import Execution
from quept.layers.inputs import ElasticInput
from quept.layers.paths import LinearSetting
from quept.layers.setting import Adjustable
from quept.layers.weight import FrozenWeight
from quept.numerics import affine

FORMS = {"dense": "dense", "packed": "pack", "integers": "integer_weight"}  # of a weight, by the method that derives it


def weight_of(linear: nn.Module) -> Tensor:
    """Return the weight as a matrix `(out, in)`, a view.

    Transformers' `Conv1D` stores `(in, out)`; a convolution has `channels x height x width` inputs.
    """
    weight = linear.weight
    assert isinstance(weight, Tensor)
    if isinstance(linear, nn.Conv2d):
        return weight.flatten(1)
    return weight if hasattr(linear, "in_features") else weight.t()


class ElasticLinear(FrozenWeight, Adjustable[LinearSetting]):
    """`x @ W_b.T + bias`, with `W_b` at the bit-width in force; see `FrozenWeight` for the tensors of the weight.

    Attributes:
        bias: `(out,)` or None, in the checkpoint's dtype.
        input: the transform and the rounding in front of the product, shared with the linears that read the same
            tensor; or None.
        execution: the products that may be used.
        weight_cache: where derived weights are kept between forward passes; None derives them at each pass.
    """

    is_matrix = True  # whether `hidden @ weight.T` is all that a forward pass computes
    bias: nn.Parameter | None

    def __init__(
        self,
        shape: Sequence[int],
        bias: Tensor | None,
        spec: WeightSpec,
        path: str,
        input: ElasticInput | None = None,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(shape, spec, path, dtype=dtype, device=device)
        self._execution = Execution()
        self._settings: dict[tuple[int | None, int | None], LinearSetting] = {}
        self.weight_cache: WeightCache | None = None
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.input = input
        self.run_at(None, None)

    @classmethod
    def like(cls, linear: nn.Module, spec: WeightSpec, path: str, input: ElasticInput | None = None) -> Self:
        """Make an uncalibrated layer of the shape of `nn.Linear` or transformers' `Conv1D`, with its bias.

        It has the linear's weight, too, unless the settings have a store, which is empty.
        """
        weight, bias = weight_of(linear).detach(), linear.bias
        assert bias is None or isinstance(bias, Tensor)
        made = cls(weight.shape, bias, spec, path, input, dtype=weight.dtype, device=weight.device)
        if made.store is None:
            made.weight.data = weight.contiguous()
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Copy the layer without the settings made so far, to which another thread may be adding."""
        return {**self.__dict__, "_settings": {}}

    @property
    def bits(self) -> int | None:
        """Bit-width of the weight in force; None is the master. Setting it sets the default for all threads."""
        return self.setting.bits

    @bits.setter
    def bits(self, bits: int | None) -> None:
        self.run_at(bits, self._default.activation_bits)

    @property
    def activation_bits(self) -> int | None:
        """Bit-width of the inputs in force; None is full precision. Setting it sets the default for all threads."""
        return self.setting.activation_bits

    @activation_bits.setter
    def activation_bits(self, activation_bits: int | None) -> None:
        self.run_at(self._default.bits, activation_bits)

    def run_at(self, bits: int | None, activation_bits: int | None) -> None:
        """Set the default bit-widths of the weight and of its inputs."""
        self.set_default(self.setting_at(bits, activation_bits))

    @property
    def execution(self) -> Execution:
        """The products that may be used. Setting it chooses the path of the default setting anew."""
        return self._execution

    @execution.setter
    def execution(self, execution: Execution) -> None:
        self._execution = execution
        self._settings.clear()
        self.run_at(self._default.bits, self._default.activation_bits)

    def setting_at(self, bits: int | None, activation_bits: int | None) -> LinearSetting:
        """Return the setting for these bit-widths, with the forward path that suits them here."""
        bits = None if bits is None else self.spec.bits_for(bits)
        found = self._settings.get((bits, activation_bits))
        if found is None:
            found = self._settings[bits, activation_bits] = paths.choose(self, bits, activation_bits)
        return found

    def keep_rounding(self, bits: frozenset[int]) -> None:
        """Run the baseline's weights at these bit-widths, instead of what was learned."""
        self.rounded_bits = bits
        self.forget_derived()
        self.execution = self._execution  # paths depend on it

    def nearest_at(self, bits: int | None, activation_bits: int | None) -> LinearSetting:
        """Return the setting of the baseline: weight and inputs rounded to nearest on unclipped ranges."""
        setting = self.setting_at(bits, activation_bits)
        if bits is not None:
            setting = setting._replace(path=paths.given, weight=self.nearest(self.spec.bits_for(bits)))
        return setting._replace(unclipped=True)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return `(..., out)` for `(..., in)` at the setting in force."""
        setting = self.setting
        return setting.path(self, hidden, setting)

    def coded(self, bits: int | None) -> int | None:
        """Return the bit-width of the codes that are multiplied at `bits`: a stored master's at None; None without."""
        return self.master_bits if bits is None else bits

    def multiply(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Return the product with a dense weight `(out, in)`, and the bias."""
        return self.execution.multiply(self._product, hidden, weight, self.bias)

    def _product(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(hidden, weight, bias)

    def resident(self, bits: int, form: str) -> Any:
        """Return the weight at `bits` in a form, from the weight cache where there is one; see `FORMS`."""
        derive = getattr(self, FORMS[form])
        return derive(bits) if self.weight_cache is None else self.weight_cache.get(Key(self.path, bits, form), derive)

    def resident_form(self, setting: LinearSetting) -> tuple[Key, Callable[[int], Sized]] | None:
        """Return what a forward pass at a setting keeps in the weight cache, and what derives it; None for nothing."""
        bits, form = self.coded(setting.bits), paths.FORM_OF.get(setting.path)
        if bits is None or form is None or self.weight_cache is None:
            return None
        return Key(self.path, bits, form), getattr(self, FORMS[form])

    def forget_derived(self) -> None:
        """Drop what the weight cache holds of this layer."""
        if self.weight_cache is not None:
            self.weight_cache.forget(self.path)

    def dense(self, bits: int) -> Tensor:
        """Return the weight at `bits`, `(out, in)`, without gradients."""
        # Kept weights outlive the call, and one made in inference mode could not be used outside it.
        with torch.inference_mode(False), torch.no_grad():
            return self.derive(bits)

    def pack(self, bits: int) -> PackedWeight:
        """Return the weight at `bits` packed in as many bits, with its scales and zero points."""
        with torch.inference_mode(False), torch.no_grad():
            inputs = self.inputs_per_scale(bits)
            if self.can_rebuild(bits):
                packed = ops.rebuild(
                    self.stored_weight(bits), bits, inputs, bits in self.spec.granularity.symmetric_bits
                )
            elif self.store is not None and self._packs_master(bits):
                packed = PackedWeight.of_master(self.store.master, self.store.master_scale)
            else:
                codes, grid = self.codes(bits)
                flat = affine.join_groups(codes, self.in_features)
                packed = PackedWeight.of(flat, grid.scale.squeeze(-1), grid.zero_point.squeeze(-1), bits, inputs)
        if self.store is not None:
            page_out(self.parameters())  # until another bit-width is wanted
        return packed

    def integer_weight(self, bits: int) -> IntegerWeight:
        """Return the weight at `bits` as an integer product takes it."""
        with torch.inference_mode(False), torch.no_grad():
            codes, grid = self.codes(bits)
            scale, zero_point = grid.scale.flatten(), grid.zero_point.flatten()
            return ops.integer_weight(codes.squeeze(1), scale, zero_point, self.device)

    def has_integer_product(self, bits: int, activation_bits: int | None) -> bool:
        """Return whether these bit-widths can be multiplied as integers here."""
        if not (self.execution.integers and self.is_matrix) or activation_bits is None:
            return False
        if self.scales_per_row(bits) > 1 or self.in_features > LARGEST_IN or not self.has_codes(bits):
            return False
        return self.input is not None and self.input.has_token_ranges and ops.has_integer_product(self.device)

    def _packs_master(self, bits: int) -> bool:
        """Return whether `bits` is the stored master as it is: with a scale per row, on a CPU."""
        return bits == self.master_bits and self.scales_per_row(bits) == 1 and self.device.type == "cpu"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.forget_derived()
        self.execution = self._execution  # paths depend on the device
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.forget_derived()

    def extra_repr(self) -> str:
        """Return shape, bit-widths and rank, for `print(model)`."""
        bits = ",".join(map(str, self.spec.groups.bits))
        rank = self.spec.adapter.total_rank(self.spec.groups)
        return f"in={self.in_features}, out={self.out_features}, bits={bits}, rank={rank}"
