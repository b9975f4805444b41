"""Packed weights: the codes of a linear layer at one bit-width, in as many bits.

Codes lie in tiles of 128 inputs (`formats.tiles`). A weight is `scale * (code - zero_point)`, with a scale and a zero
point for each group of inputs. Scales are float16 times a power of two per row, or, where a row has one, float32.
"""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from quept.formats import tiles
from quept.formats.paging import empty_bytes
from quept.numerics import affine


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight `(out, in)` at `bits` bits; `ValueError` where shapes or types do not fit.

    codes: uint8 `(out, tiles.bytes_per_row(in, bits))`.
    scale: float16 `(out, groups)`, a group being `inputs_per_scale` inputs; None where a row has one group. Where all
        codes of a group are its zero point, zero.
    row_scale: float32 `(out,)`: a power of two that is multiplied by `scale`, or, without it, the scale.
    zero_point: uint8 `(out, groups)`.
    handles: what backends keep about the weight, by backend; a copy starts without them.
    """

    shape: tuple[int, int]
    bits: int
    inputs_per_scale: int
    codes: Tensor
    scale: Tensor | None
    row_scale: Tensor
    zero_point: Tensor
    handles: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy has tensors of its own, elsewhere.
        return PackedWeight, tuple(getattr(self, each.name) for each in fields(self) if each.init)

    def __post_init__(self) -> None:
        out_features, in_features = self.shape
        if not 2 <= self.bits <= 8:
            raise ValueError(f"codes have 2 to 8 bits, not {self.bits}")
        if self.inputs_per_scale < 1:
            raise ValueError(f"a scale is of at least one input, not {self.inputs_per_scale}")
        groups = self.groups
        if (self.scale is None) != (groups == 1):
            raise ValueError("rows of one group have their scale in row_scale, and all others float16 scales beside it")
        wanted = {
            "codes": (torch.uint8, (out_features, tiles.bytes_per_row(in_features, self.bits))),
            "scale": (torch.float16, (out_features, groups)),
            "row_scale": (torch.float32, (out_features,)),
            "zero_point": (torch.uint8, (out_features, groups)),
        }
        for name, (dtype, shape) in wanted.items():
            given = getattr(self, name)
            if given is not None and (given.dtype != dtype or given.shape != shape or not given.is_contiguous()):
                raise ValueError(
                    f"{name} is {given.dtype} {tuple(given.shape)}; it has to be {dtype} {shape}, without gaps"
                )

    @classmethod
    def of(cls, codes: Tensor, scale: Tensor, zero_point: Tensor, bits: int, inputs_per_scale: int) -> "PackedWeight":
        """From uint8 codes `(out, in)` below `2**bits`, and scales and integral zero points, 0 to 255, `(out, groups)`.

        Scales are rounded to float16 where a row has more than one.
        """
        out_features, in_features = codes.shape
        groups = affine.groups_per_row(in_features, inputs_per_scale)
        if not 2 <= bits <= 8 or scale.shape != (out_features, groups) or zero_point.shape != scale.shape:
            raise ValueError(
                f"{tuple(codes.shape)} codes of {bits} bits, a scale for {inputs_per_scale} inputs, came with scales "
                f"{tuple(scale.shape)} and zero points {tuple(zero_point.shape)}; bits are 2 to 8, and both of the "
                f"others {(out_features, groups)}"
            )
        zero_point = zero_point.to(torch.uint8).contiguous()
        scale = scale.to(torch.float32)
        half: Tensor | None = None
        if groups == 1:
            row_scale = scale.flatten().contiguous()
        else:
            half, row_scale = _halves(codes, scale, zero_point, inputs_per_scale)
        found = tiles.pack(codes, bits)
        if found.device.type == "cpu":
            found = empty_bytes(*found.shape).copy_(found)
        return cls((out_features, in_features), bits, inputs_per_scale, found, half, row_scale, zero_point)

    @classmethod
    def of_master(cls, master: Tensor, scale: Tensor) -> "PackedWeight":
        """From an 8-bit master: int8 codes `(out, in)` with a scale per row, `(out, 1)`. Its codes count from 128."""
        out_features, in_features = master.shape
        codes = empty_bytes(out_features, tiles.bytes_per_row(in_features, 8))
        codes[:, in_features:] = 0
        torch.bitwise_xor(master.view(torch.uint8), 128, out=codes[:, :in_features])
        zero_point = torch.full((out_features, 1), 128, dtype=torch.uint8)
        row_scale = scale.to(torch.float32).flatten().contiguous()
        return cls((out_features, in_features), 8, in_features, codes, None, row_scale, zero_point)

    @classmethod
    def empty(cls, shape: tuple[int, int], bits: int, inputs_per_scale: int) -> "PackedWeight":
        """Return a weight on a CPU whose tensors are uninitialized, for a kernel to fill."""
        out_features, in_features = shape
        groups = affine.groups_per_row(in_features, inputs_per_scale)
        codes = empty_bytes(out_features, tiles.bytes_per_row(in_features, bits))
        scale = None if groups == 1 else torch.empty(out_features, groups, dtype=torch.float16)
        row_scale = torch.empty(out_features, dtype=torch.float32)
        zero_point = torch.empty(out_features, groups, dtype=torch.uint8)
        return cls(shape, bits, inputs_per_scale, codes, scale, row_scale, zero_point)

    @property
    def groups(self) -> int:
        """Scales per row."""
        return affine.groups_per_row(self.shape[1], self.inputs_per_scale)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        held = (self.codes, self.scale, self.row_scale, self.zero_point)
        return sum(each.nbytes for each in held if each is not None)

    @staticmethod
    def bytes_of(shape: tuple[int, int], bits: int, inputs_per_scale: int) -> int:
        """Return `nbytes` of a weight of this shape."""
        out_features, in_features = shape
        groups = affine.groups_per_row(in_features, inputs_per_scale)
        halves = 2 * groups if groups > 1 else 0
        return out_features * (tiles.bytes_per_row(in_features, bits) + halves + 4 + groups)

    @property
    def scales(self) -> Tensor:
        """The scale of each group, float32 `(out, groups)`."""
        row_scale = self.row_scale.unsqueeze(1)
        return row_scale if self.scale is None else self.scale.to(torch.float32) * row_scale

    def unpacked(self) -> Tensor:
        """Return the codes, uint8 `(out, in)`."""
        return tiles.unpack(self.codes, self.bits, self.shape[1])

    def dequantize(self, dtype: torch.dtype, rows: slice | None = None) -> Tensor:
        """Return `scale * (code - zero_point)` of all or some rows, `(rows, in)`: float32, rounded once to `dtype`."""
        which = slice(None) if rows is None else rows
        codes = tiles.unpack(self.codes[which], self.bits, self.shape[1])
        grouped = affine.split_groups(codes.to(torch.float32), min(self.inputs_per_scale, self.shape[1]))
        zero_point = self.zero_point[which].to(torch.float32).unsqueeze(-1)
        values = (grouped - zero_point) * self.scales[which].unsqueeze(-1)
        return affine.join_groups(values, self.shape[1]).to(dtype).contiguous()


def _halves(codes: Tensor, scale: Tensor, zero_point: Tensor, inputs_per_scale: int) -> tuple[Tensor, Tensor]:
    """Return scales as float16, and the power of two of each row that they are multiplied by.

    The largest scale of a row becomes 2**14 to 2**15, so that scales down to 2**-28 of it keep all digits. Groups whose
    weights are all zero, whatever their scale, do not count.
    """
    padded = affine.split_groups(codes, inputs_per_scale)
    inside = torch.arange(padded.shape[1] * inputs_per_scale, device=codes.device) < codes.shape[1]
    used = ((padded != zero_point.unsqueeze(-1)) & inside.view(padded.shape[1:])).any(-1)
    scale = scale * used
    exponent = scale.amax(1).view(torch.int32) >> 23
    row_scale = ((exponent - 14).clamp_min(1) << 23).view(torch.float32)
    return (scale / row_scale.unsqueeze(1)).to(torch.float16), row_scale
