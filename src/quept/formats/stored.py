"""The weight of a linear layer from which the codes of every bit-width are rebuilt, in integers.

The master is int8 with a bfloat16 scale per group, the adapter a product of int8 factors, clip ratios bytes. Every step
on the way to a code is exact or rounded once to float32, in an order that is fixed here, so that all devices and
kernels rebuild the same codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quept.config import LARGEST_RANK
from quept.formats import eight_bit, packing
from quept.formats.derivation import derive, masked
from quept.numerics import affine


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """The stored parts from which one bit-width of a weight `(out, in)` is rebuilt.

    Raises ValueError where shapes or types do not fit.

    master: int8 `(out, in)`, from -127 to 127.
    master_scale: bfloat16 `(out, groups)`, one for every `master_group` inputs, the last group being shorter.
    up, down: int8 `(out, rank)` and `(rank, in)`, or both None: an adapter `up @ down` times `adapter_scale`.
    adapter_scale: float32 `(out,)`, with an adapter.
    clip_ratios: uint8 `(2, out, groups of the bit-width)` or None: each group's range keeps `(value + 1) / 256` of its
        minimum (0) and of its maximum (1). None keeps all.
    mask: uint8 `(out, ceil(in / 8))` or None: the rounding mask, as `formats.packing` packs it at one bit.
    """

    master: Tensor
    master_scale: Tensor
    master_group: int
    up: Tensor | None = None
    down: Tensor | None = None
    adapter_scale: Tensor | None = None
    clip_ratios: Tensor | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        _check("master", self.master, torch.int8, None)
        if self.master_group < 1:
            raise ValueError(f"a group of the master has at least one input, not {self.master_group}")
        out_features, in_features = self.shape
        groups = affine.groups_per_row(in_features, self.master_group)
        _check("master_scale", self.master_scale, torch.bfloat16, (out_features, groups))
        adapter = (self.up, self.down, self.adapter_scale)
        if any(each is None for each in adapter) != all(each is None for each in adapter):
            raise ValueError("an adapter is up, down and adapter_scale together; give all of them or none")
        if self.up is not None and self.down is not None and self.adapter_scale is not None:
            rank = len(self.down)
            if rank > LARGEST_RANK:
                raise ValueError(f"sums over a rank of {rank} are not exact; {LARGEST_RANK} is the largest")
            _check("up", self.up, torch.int8, (out_features, rank))
            _check("down", self.down, torch.int8, (rank, in_features))
            _check("adapter_scale", self.adapter_scale, torch.float32, (out_features,))
        if self.mask is not None:
            _check("mask", self.mask, torch.uint8, (out_features, packing.bytes_per_row(in_features, 1)))

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.master.shape[0], self.master.shape[1]

    def weight(self) -> Tensor:
        """Return master and adapter added up, `(out, in)` float32."""
        weight = eight_bit.dense_master(self.master, self.master_scale, self.master_group)
        if self.up is not None and self.down is not None and self.adapter_scale is not None:
            weight = weight + eight_bit.product(self.up, self.down, self.adapter_scale)
        return weight

    def codes(self, bits: int, inputs_per_scale: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes uint8 `(out, in)`, scales and integral zero points float32 `(out, groups)` at a bit-width."""
        self.check_groups(bits, inputs_per_scale)
        inputs_per_scale = min(inputs_per_scale, self.shape[1])
        derived = derive(
            self.weight(),
            bits,
            inputs_per_scale,
            clip_ratios=None if self.clip_ratios is None else eight_bit.clip_ratios(self.clip_ratios, bits=8),
            symmetric=symmetric,
            rounding=None if self.mask is None else masked(self.mask, self.shape[1], inputs_per_scale),
        )
        codes = affine.join_groups(derived.codes(), self.shape[1])
        return codes, derived.grid.scale.squeeze(-1), derived.grid.zero_point.squeeze(-1)

    def check_groups(self, bits: int, inputs_per_scale: int) -> None:
        """Raise ValueError unless clip ratios are of groups of this many inputs, and the bit-width is known."""
        if not 2 <= bits <= 8:
            raise ValueError(f"codes have 2 to 8 bits, not {bits}")
        if inputs_per_scale < 1:
            raise ValueError(f"a scale is of at least one input, not {inputs_per_scale}")
        if self.clip_ratios is not None:
            groups = affine.groups_per_row(self.shape[1], inputs_per_scale)
            _check("clip_ratios", self.clip_ratios, torch.uint8, (2, self.shape[0], groups))


def _check(name: str, given: Tensor, dtype: torch.dtype, shape: tuple[int, ...] | None) -> None:
    fits = given.dim() == 2 if shape is None else given.shape == shape
    if given.dtype != dtype or not fits:
        wanted = "(out, in)" if shape is None else str(shape)
        raise ValueError(f"{name} is {given.dtype} {tuple(given.shape)}; it has to be {dtype} {wanted}")
