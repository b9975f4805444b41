"""The 8-bit store of a linear, from which its weight at every bit-width is rebuilt."""

import torch
from torch import Tensor, nn

from quept.config import WeightSpec
from quept.formats import eight_bit
from quept.formats.stored import StoredWeight
from quept.layers.keep_dtype import KeepDtype
from quept.numerics.affine import Grid, groups_per_row, split_groups


class EightBitStore(KeepDtype):
    """Master weight, low-rank factors and clip ratios, none of which changes its dtype.

    Parameters, of which none trains (`R` is the total rank, `groups_b` the scales per row at bit-width b):
        master, master_scale: int8 `(out, in)` and bfloat16 `(out, groups)`: the weight is their product.
        up, down, adapter_scale: int8 `(out, R)` and `(R, in)`, float32 `(out,)`; or absent where no bit-width has an
            adapter.
        shares.<b>: uint8, `(2, out, groups_b)`, or `(out, groups_b)` where two are in a byte; none at the bit-width of
            the master.
    """

    up: nn.Parameter | None
    down: nn.Parameter | None
    adapter_scale: nn.Parameter | None

    def __init__(self, shape: torch.Size, spec: WeightSpec, device: torch.device) -> None:
        super().__init__()
        out_features, in_features = shape
        self.spec, self.in_features = spec, in_features
        self.inputs_per_scale, groups = eight_bit.master_groups(in_features, spec.store.group_size)
        rank = spec.adapter.total_rank(spec.groups)

        def kept(dtype: torch.dtype, *size: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(size, dtype=dtype, device=device), requires_grad=False)

        self.master = kept(torch.int8, out_features, in_features)
        self.master_scale = kept(torch.bfloat16, out_features, groups)
        self.up = kept(torch.int8, out_features, rank) if rank else None
        self.down = kept(torch.int8, rank, in_features) if rank else None
        self.adapter_scale = kept(torch.float32, out_features) if rank else None
        self.shares = nn.ParameterDict()
        for bits in spec.store.without_master(spec.groups.bits):
            scales = groups_per_row(in_features, spec.inputs_per_scale(bits, in_features))
            ends = (2,) if self.clip_ratio_bits(bits) == 8 else ()
            self.shares[str(bits)] = kept(torch.uint8, *ends, out_features, scales)

    @torch.no_grad()
    def set_master(self, codes: Tensor, scale: Tensor) -> None:
        """Take over a master, int8 `(out, in)` and bfloat16 `(out, groups)`."""
        self.master.copy_(codes)
        self.master_scale.copy_(scale)

    @torch.no_grad()
    def round_factors(self, up: Tensor, down: Tensor) -> None:
        """Take over low-rank factors, `(out, R)` and `(R, in)`, rounded."""
        if self.up is not None and self.down is not None and self.adapter_scale is not None:
            for kept, value in zip(
                (self.up, self.down, self.adapter_scale), eight_bit.round_factors(up, down), strict=True
            ):
                kept.copy_(value)

    @torch.no_grad()
    def round_clip_ratios(self, bits: int, ratios: Tensor) -> None:
        """Take over the clip ratios of a bit-width, `(2, out, groups_b)`, rounded."""
        self.shares[str(bits)].copy_(eight_bit.round_clip_ratios(ratios, self.clip_ratio_bits(bits)))

    def master_codes(self) -> tuple[Tensor, Grid]:
        """Return the master as unsigned codes, `(out, groups, inputs)` uint8, and their grid."""
        assert self.spec.store.master_bits is not None
        middle = 2 ** (self.spec.store.master_bits - 1)
        grouped = split_groups(self.master, self.inputs_per_scale)
        scale = self.master_scale.to(torch.float32).unsqueeze(-1)
        codes = grouped.to(torch.int16).add_(middle).to(torch.uint8)
        return codes, Grid(scale, torch.full_like(scale, middle), 2 * middle - 1)

    def weight(self) -> Tensor:
        """Return the master, `(out, in)` float32."""
        return eight_bit.dense_master(self.master, self.master_scale, self.inputs_per_scale)

    def adapter(self, columns: slice) -> Tensor:
        """Return the product of some of the factors' components, `(out, in)` float32."""
        assert self.up is not None
        assert self.down is not None
        assert self.adapter_scale is not None
        return eight_bit.product(self.up[:, columns], self.down[columns], self.adapter_scale)

    def clip_ratio_bits(self, bits: int) -> int:
        """Return the bits of one clip ratio at a bit-width."""
        return self.spec.clip_ratio_bits(bits, self.in_features)

    def clip_ratios(self, bits: int) -> Tensor:
        """Return the clip ratios of minima and maxima at a bit-width, `(2, out, groups_b)` float32."""
        return eight_bit.clip_ratios(self.shares[str(bits)], self.clip_ratio_bits(bits))

    def stored_weight(self, bits: int, mask: Tensor | None) -> StoredWeight:
        """Return all that a kernel rebuilds a bit-width from: factors, clip ratios as bytes, and rounding mask."""
        columns = self.spec.adapter.columns(bits, self.spec.groups)
        up = down = scale = None
        if columns.stop and self.up is not None and self.down is not None:
            up, down, scale = self.up[:, columns].contiguous(), self.down[columns], self.adapter_scale
        kept = self.shares[str(bits)] if bits != self.spec.store.master_bits else None
        shares = None if kept is None else eight_bit.byte_clip_ratios(kept, self.clip_ratio_bits(bits))
        return StoredWeight(self.master, self.master_scale, self.inputs_per_scale, up, down, scale, shares, mask)

    def rounded_weight(self) -> StoredWeight:
        """Return what a kernel rebuilds plain rounding of the master from."""
        return StoredWeight(self.master, self.master_scale, self.inputs_per_scale)

    def learned(self) -> dict[str, Tensor]:
        """Return all tensors by name; their dtypes do not follow the model's."""
        return dict(self.named_parameters())
