"""The weight of an elastic layer at every bit-width of a set, derived from what an artifact stores of it.

The master weight is frozen. What calibration has learned is small: one pair of low-rank factors, of which each bit
group reads a slice (MB-CLoRA), two clip logits per bit-width and scale, and at the bit-widths whose rounding is learned
one bit per weight. The weight at a bit-width is derived from these; nothing else is stored, so all bit-widths are one
model.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quept.config import WeightSpec
from quept.errors import InvalidInput
from quept.formats import packing
from quept.formats.derivation import Derivation, adapted, derive, masked
from quept.formats.stored import StoredWeight
from quept.layers.eight_bit import EightBitStore
from quept.layers.keep_dtype import KeepDtype
from quept.numerics import affine
from quept.numerics.affine import Grid

INITIAL_CLIP_LOGIT = 4.0  # sigmoid(4) = 0.982: ranges start almost whole (paper, section on the weight quantizer)


class FrozenWeight(KeepDtype):
    """A weight `(out, in)` at every bit-width of a set; nothing in it trains.

    Tensors, under the names that they have on disk (float32 unless said otherwise; `R` is the total rank, `groups_b`
    the scales per row at bit-width b). Where the settings have a store:
        store: the master in 8 bits, low-rank factors and clip ratios; see `EightBitStore`.
    Elsewhere:
        weight: the master, `(out, in)`, in the checkpoint's dtype.
        A, B: low-rank factors, `(R, in)` and `(out, R)`.
        clipping.<b>: logits of the clip ratios of each group's minimum and maximum, `(2, out, groups_b)`.
    In both:
        planes.<b>: rounding masks, packed, `(out, ceil(in / 8))` uint8; see `quept.numerics.rounding_mask`.
        input_scale: `(in,)`, by which a transform multiplied the columns: the baseline rounds the weight before that.
            None in a store whose recipe has no such transform.
    """

    weight: nn.Parameter
    input_scale: Tensor | None
    store: EightBitStore | None

    def __init__(
        self, shape: Sequence[int], spec: WeightSpec, path: str, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        check_rank(shape, spec, path)
        self.spec, self.path = spec, path
        self.out_features, self.in_features = out_features, in_features = shape
        self.rounded_bits: frozenset[int] = frozenset()  # where plain rounding is kept instead of what was learned
        self._dtype_marker = torch.empty(0, dtype=dtype)  # goes where the model goes: the dtype of derived weights

        def parameter(*shape: int, dtype: torch.dtype = torch.float32, value: float = 0) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, value, dtype=dtype, device=device), requires_grad=False)

        if spec.store.master_bits is None:
            rank = spec.adapter.total_rank(spec.groups)
            self.weight = parameter(out_features, in_features, dtype=dtype)
            self.A, self.B = parameter(rank, in_features), parameter(out_features, rank)
            self.clipping = nn.ParameterDict()
            for bits in spec.groups.bits:
                shape = (2, out_features, self.scales_per_row(bits))
                self.clipping[str(bits)] = parameter(*shape, value=INITIAL_CLIP_LOGIT)
            self.store = None
        else:
            self.store = EightBitStore(torch.Size(shape), spec, device)
        self.planes = nn.ParameterDict()
        for bits in spec.learned_rounding:
            self.planes[str(bits)] = parameter(out_features, packing.bytes_per_row(in_features, 1), dtype=torch.uint8)
        scale = torch.ones(in_features, dtype=torch.float32, device=device) if spec.scaled else None
        self.register_buffer("input_scale", scale)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the derived weights."""
        return self._dtype_marker.dtype

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return next(self.parameters()).device

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.out_features * self.in_features

    @property
    def master_bits(self) -> int | None:
        """Bit-width of a stored master; None where the master is kept in floats."""
        return self.spec.store.master_bits

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Derive weights in `dtype` from now on, where they are derived from a store."""
        self._dtype_marker = self._dtype_marker.to(dtype)

    def master(self) -> Tensor:
        """Return the master weight, `(out, in)` in the layer's dtype; from a store it is dequantized at each call."""
        return self.weight if self.store is None else self.store.weight().to(self.dtype)

    def derive(self, bits: int) -> Tensor:
        """Return the weight at `bits`, `(out, in)` in the layer's dtype."""
        if bits == self.master_bits:
            return self.master()
        if bits in self.rounded_bits:
            return self.nearest(bits)
        return self._join(self.derivation(bits).dequantized())

    def has_codes(self, bits: int) -> bool:
        """Return whether the weight at `bits` is codes on a grid: not the baseline of one whose columns are scaled."""
        return bits not in self.rounded_bits or self.input_scale is None

    def codes(self, bits: int) -> tuple[Tensor, Grid]:
        """Return the codes at `bits`, `(out, groups, inputs)` uint8, and their grid; see `has_codes`."""
        assert self.has_codes(bits)
        with torch.no_grad():
            if bits == self.master_bits:
                assert self.store is not None
                return self.store.master_codes()
            derived = self.derivation(bits)
            return derived.codes(), derived.grid

    def nearest(self, bits: int) -> Tensor:
        """Return the baseline, `(out, in)`: the master before transforms, rounded to nearest at the same granularity.

        At the bit-width of a stored master it is the master, which is rounded to nearest.
        """
        with torch.no_grad():
            if bits == self.master_bits:
                return self.master()
            master = self._master()
            if self.input_scale is None:
                return self._join(self._rounded(master, bits).dequantized())
            rounded = self._rounded(master / self.input_scale, bits).dequantized()
            return (affine.join_groups(rounded, self.in_features) * self.input_scale).to(self.dtype)

    def derivation(self, bits: int, *, masks: bool = True) -> Derivation:
        """Derive `bits` from the master; without `masks`, learned rounding is left out."""
        if bits in self.rounded_bits:
            return self._rounded(self._master(), bits)
        adapter, entry, rounding = self._adapter(bits), self.spec.adapter.entry, None
        weight = self._master()
        if adapter is not None and entry == "weight":
            weight = weight + adapter
        elif adapter is not None:
            rounding = adapted(adapter, entry, self.inputs_per_scale(bits))
        if masks and bits in self.spec.learned_rounding:
            rounding = masked(self.planes[str(bits)], self.in_features, self.inputs_per_scale(bits))
        clip_ratios = torch.sigmoid(self.clipping[str(bits)]) if self.store is None else self.store.clip_ratios(bits)
        symmetric = bits in self.spec.granularity.symmetric_bits
        return derive(
            weight,
            bits,
            self.inputs_per_scale(bits),
            clip_ratios=clip_ratios,
            symmetric=symmetric,
            rounding=rounding,
        )

    def stored_weight(self, bits: int) -> StoredWeight:
        """Return what a kernel rebuilds `bits` from, in a store."""
        assert self.store is not None
        self.spec.groups.index(bits)
        if bits in self.rounded_bits:
            return self.store.rounded_weight()
        return self.store.stored_weight(bits, self.planes[str(bits)] if bits in self.spec.learned_rounding else None)

    def can_rebuild(self, bits: int) -> bool:
        """Return whether a kernel can rebuild `bits` from the store: not the master's own, nor adapters in steps."""
        if self.store is None or bits == self.master_bits:
            return False
        return self.spec.adapter.entry == "weight" or not self.spec.has_adapter(bits)

    def inputs_per_scale(self, bits: int) -> int:
        """Return the inputs that share a scale at `bits`."""
        return self.spec.inputs_per_scale(bits, self.in_features)

    def scales_per_row(self, bits: int) -> int:
        """Return the scales per output channel at `bits`."""
        return affine.groups_per_row(self.in_features, self.inputs_per_scale(bits))

    def learned(self) -> dict[str, Tensor]:
        """Return all tensors but weight and bias, by name: they keep their dtype whatever the model's."""
        found: dict[str, Tensor] = {f"planes.{bits}": mask for bits, mask in self.planes.items()}
        if self.input_scale is not None:
            found["input_scale"] = self.input_scale
        if self.store is not None:
            return found | {f"store.{name}": value for name, value in self.store.learned().items()}
        return found | {"A": self.A, "B": self.B} | {f"clipping.{bits}": v for bits, v in self.clipping.items()}

    def _master(self) -> Tensor:
        return self.weight.to(torch.float32) if self.store is None else self.store.weight()

    def _adapter(self, bits: int) -> Tensor | None:
        """Return `B A`, `(out, in)` float32, of the components that `bits` reads; None without an adapter."""
        columns = self.spec.adapter.columns(bits, self.spec.groups)
        if columns.stop == 0:
            return None
        return self.B[:, columns] @ self.A[columns] if self.store is None else self.store.adapter(columns)

    def _rounded(self, weight: Tensor, bits: int) -> Derivation:
        symmetric = bits in self.spec.granularity.symmetric_bits
        return derive(weight, bits, self.inputs_per_scale(bits), symmetric=symmetric)

    def _join(self, grouped: Tensor) -> Tensor:
        return affine.join_groups(grouped, self.in_features).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._dtype_marker = fn(self._dtype_marker)
        return super()._apply(fn, recurse)


def check_rank(shape: Sequence[int], spec: WeightSpec, path: str) -> None:
    """Raise `InvalidInput` if the rank per group is above what a weight of this shape, `(out, in)`, can use."""
    if spec.adapter.kind != "none" and spec.adapter.rank > min(shape):
        raise InvalidInput(
            f"The rank {spec.adapter.rank} is above the size of layer {path}, {' x '.join(map(str, shape))}; "
            f"choose a rank of at most {min(shape)}."
        )
