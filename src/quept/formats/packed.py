"""Packed weights: a linear layer's codes at one width in as many bits, and products with them.

Codes are in blocks of 128 inputs (`numerics.blocks`). A weight is `scale * (code - zero_point)`, with a scale and a
zero point for each group of inputs. Scales are float16 times a power of two per row, or, where a row has one, float32.

Few tokens are multiplied in integers, where kernels run. Each token's inputs are rounded to signed eight bits, with a
scale for every block, so that large channels cost no accuracy elsewhere:

    unit = max(max|x| over the block / 127, smallest normal float32)      a = clamp(round(x * (1 / unit)), -127, 127)

A block that is not finite has a unit of NaN. Sums of products of codes are exact. Float32 enters where units and scales
do, in an order that does not depend on the path or the number of threads: `integer_product` is its specification.
Everything else is multiplied as floats, by PyTorch, from rows dequantized panel by panel.
"""

from dataclasses import dataclass, fields
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, library
from torch.nn import functional as F

from quept.formats import tiles
from quept.formats.paging import empty_bytes
from quept.formats.stored import StoredWeight
from quept.formats.tiles import TILE
from quept.numerics import affine
from quept.ops import available, packed

TINY = torch.finfo(torch.float32).tiny
HIGHEST = 127  # code of an activation
LANES = 8  # that sums of floats are kept in
PANEL = 2**18  # weights dequantized at a time: they stay in a second-level cache
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FEW = 64  # tokens that are multiplied in integers; from about 256 on, floats are as fast where AVX2 is what there is
_UNKNOWN: Any = object()


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight `(out, in)` at `bits` bits; `ValueError` where shapes or types do not fit.

    codes: uint8 `(out, tiles.bytes_per_row(in, bits))`.
    scale: float16 `(out, groups)`, a group being `inputs_per_scale` inputs; None where a row has one group. Where all
        codes of a group are its zero point, zero.
    row_scale: float32 `(out,)`: a power of two that is multiplied by `scale`, or, without it, the scale.
    zero_point: uint8 `(out, groups)`.
    """

    shape: tuple[int, int]
    bits: int
    inputs_per_scale: int
    codes: Tensor
    scale: Tensor | None
    row_scale: Tensor
    zero_point: Tensor

    @property
    def native(self) -> packed.NativeWeight | None:
        """The weight as kernels know it, or None where they do not run or cannot read it."""
        if not available():
            return None
        known: packed.NativeWeight | None
        known = self.__dict__.get("_native", _UNKNOWN)
        if known is _UNKNOWN:
            held = self.codes, self.scale, self.row_scale, self.zero_point
            known = packed.native_weight(self.shape, self.bits, self.inputs_per_scale, *held)
            self.__dict__["_native"] = known
        return known

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy has tensors of its own, elsewhere.
        return PackedWeight, tuple(getattr(self, each.name) for each in fields(self))

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
        """From int8 codes `(out, in)` with a scale per row, `(out, 1)`: what `of` makes of them, counted from 128."""
        out_features, in_features = master.shape
        codes = empty_bytes(out_features, tiles.bytes_per_row(in_features, 8))
        codes[:, in_features:] = 0
        torch.bitwise_xor(master.view(torch.uint8), 128, out=codes[:, :in_features])
        zero_point = torch.full((out_features, 1), 128, dtype=torch.uint8)
        row_scale = scale.to(torch.float32).flatten().contiguous()
        return cls((out_features, in_features), 8, in_features, codes, None, row_scale, zero_point)

    @property
    def groups(self) -> int:
        """Scales per row."""
        return affine.groups_per_row(self.shape[1], self.inputs_per_scale)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        held = (self.codes, self.scale, self.row_scale, self.zero_point)
        return sum(each.nbytes for each in held if each is not None)

    @staticmethod
    def bytes_of(shape: tuple[int, int], bits: int, inputs_per_scale: int) -> int:
        """`nbytes` of a weight that is yet to be made."""
        out_features, in_features = shape
        groups = affine.groups_per_row(in_features, inputs_per_scale)
        halves = 2 * groups if groups > 1 else 0
        return out_features * (tiles.bytes_per_row(in_features, bits) + halves + 4 + groups)

    @property
    def scales(self) -> Tensor:
        """What a step of each group is worth, float32 `(out, groups)`."""
        row_scale = self.row_scale.unsqueeze(1)
        return row_scale if self.scale is None else self.scale.to(torch.float32) * row_scale

    def unpacked(self) -> Tensor:
        """The codes, uint8 `(out, in)`."""
        return tiles.unpack(self.codes, self.bits, self.shape[1])

    def dense(self, dtype: torch.dtype, rows: slice | None = None) -> Tensor:
        """`scale * (code - zero_point)` of all or some rows, `(rows, in)`: in float32, rounded once to `dtype`."""
        which = slice(None) if rows is None else rows
        start, stop, step = which.indices(self.shape[0])
        if dtype in DTYPES and step == 1 and (native := self.native) is not None:
            return packed.dense(native, dtype, start, max(0, stop - start))
        codes = tiles.unpack(self.codes[which], self.bits, self.shape[1])
        grouped = affine.split_groups(codes.to(torch.float32), min(self.inputs_per_scale, self.shape[1]))
        zero_point = self.zero_point[which].to(torch.float32).unsqueeze(-1)
        values = (grouped - zero_point) * self.scales[which].unsqueeze(-1)
        return affine.join_groups(values, self.shape[1]).to(dtype).contiguous()


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, exact: bool = False) -> Tensor:
    """`x @ W.T + bias`: `(..., in)` to `(..., out)`, in the dtype of `x`, float32, bfloat16 or float16.

    `bias` is `(out,)`. With `exact`, activations are not rounded, however few the tokens are. `ValueError` where shapes
    or types do not fit.
    """
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(f"the activation has {x.shape[-1]} channels, the weight {weight.shape[1]}")
    if x.dtype not in DTYPES:
        raise ValueError(f"the activation is {x.dtype}; it has to be float32, bfloat16 or float16")
    if torch.compiler.is_compiling():
        held = weight.codes, weight.scale, weight.row_scale, weight.zero_point
        result: Tensor = _operator(x, *held, bias, weight.bits, weight.inputs_per_scale, exact)
        return result
    if not exact and x.numel() <= FEW * x.shape[-1] and _reads(x) and (bias is None or _reads(bias)):
        native = weight.native
        if native is not None and native.multiplies_integers:
            return packed.multiply(x, native, bias)
    return _dense_linear(x, weight, bias)


def _reads(tensor: Tensor) -> bool:
    """Whether kernels can read a tensor, and no gradient is asked of it."""
    return packed.is_plain(tensor) and not (tensor.requires_grad and torch.is_grad_enabled())


def rebuild(store: StoredWeight, bits: int, inputs_per_scale: int, symmetric: bool) -> PackedWeight:
    """The weight at a width: `store.codes` packed, with `inputs_per_scale` inputs to a scale."""
    store.check_groups(bits, inputs_per_scale)
    if available() and store.master.numel() and packed.is_plain(store.master):
        weight = _empty(store.shape, bits, inputs_per_scale)
        adapter = None
        if store.up is not None and store.down is not None and store.adapter_scale is not None:
            adapter = store.up, store.down, store.adapter_scale
        held = store.master, store.master_scale, store.master_group, adapter, store.clip_ratios, store.plane
        if weight.native is not None and packed.rebuild(weight.native, symmetric, *held):
            return weight
    return PackedWeight.of(*store.codes(bits, inputs_per_scale, symmetric), bits, inputs_per_scale)


def _empty(shape: tuple[int, int], bits: int, inputs_per_scale: int) -> PackedWeight:
    """A weight without content yet."""
    out_features, in_features = shape
    groups = affine.groups_per_row(in_features, inputs_per_scale)
    codes = empty_bytes(out_features, tiles.bytes_per_row(in_features, bits))
    scale = None if groups == 1 else torch.empty(out_features, groups, dtype=torch.float16)
    row_scale = torch.empty(out_features, dtype=torch.float32)
    zero_point = torch.empty(out_features, groups, dtype=torch.uint8)
    return PackedWeight(shape, bits, inputs_per_scale, codes, scale, row_scale, zero_point)


class TileTokens(NamedTuple):
    """Tokens rounded block by block: codes `(tokens, blocks, 128)` and units `(tokens, blocks)`, float32 both."""

    codes: Tensor
    unit: Tensor


def quantize_tiles(x: Tensor) -> TileTokens:
    """Round `(tokens, in)` to signed eight bits, a scale for each block of 128 inputs."""
    rows = affine.split_groups(x.to(torch.float32), TILE)
    unit = (rows.abs().amax(-1) / HIGHEST).clamp_min(TINY)
    finite = unit.isfinite()
    unit = unit.where(finite, torch.nan)
    codes = (rows * unit.reciprocal().unsqueeze(-1)).round().clamp(-HIGHEST, HIGHEST)
    return TileTokens(codes.where(finite.unsqueeze(-1), 0), unit)


def integer_product(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """What the kernels compute for `(tokens, in)`: the product with rounded activations, `(tokens, out)`.

    A block has one, two (groups of 64) or four (groups of 32) units of inputs that share a scale. Of every unit `u`:
    `d[u, l]`, the sums of products of codes in lane `l`, which has inputs `32 k + 4 l` to `32 k + 4 l + 3` of the
    block, and `e[u]`, the sum of the activation's codes. Codes of eight bits and their zero points count from 128.

        several scales:  lane[l] = sum over u of d[u, l] * (s[u] * unit[u])
                         zero[l] = sum over u = l, l + 8, l + 16, ... of (s[u] * z[u]) * (unit[u] * e[u])
                         y = row_scale * tree(lane - zero)
        one scale:       lane[l] = sum over u of d[u, l] * unit[u]
                         zero[l] = sum over u = l, l + 8, l + 16, ... of unit[u] * e[u]
                         y = row_scale * (tree(lane) - z * tree(zero))

    Sums go from the first to the last; `tree` adds lane `l + 4` to lane `l`, then `l + 2` to `l`, then `l + 1`. Bias
    is added in float32, and the result is rounded once to the dtype of `x`. Slow: for comparison.
    """
    per_block = units_per_tile(weight.shape[1], weight.inputs_per_scale)
    if per_block is None:
        raise ValueError(f"groups of {weight.inputs_per_scale} inputs are not multiplied in integers")
    if not len(x):
        return x.new_empty(0, weight.shape[0])
    tokens = quantize_tiles(x)
    offset = 128 if weight.bits == 8 else 0
    sets = tiles.SETS // per_block
    activation = tokens.codes.view(*tokens.unit.shape, per_block, sets, LANES, 4)
    padded = F.pad(weight.unpacked(), (0, -weight.shape[1] % TILE), value=offset)
    codes = (padded.to(torch.float32) - offset).view(weight.shape[0], *activation.shape[1:])
    unit = tokens.unit.repeat_interleave(per_block, dim=1)
    e = unit * activation.sum((-1, -2, -3)).flatten(1)  # (tokens, units)
    z, s = _by_unit(weight.zero_point.to(torch.float32) - offset, weight, per_block), None
    if weight.scale is not None:
        s = _by_unit(weight.scale.to(torch.float32), weight, per_block)
    rows = []
    for token in range(len(x)):
        sums = (codes * activation[token]).sum((-1, -3)).flatten(1, 2)  # (out, units, lanes)
        if s is None:
            dot = _tree(_in_order(sums * unit[token].view(1, -1, 1)))
            zero = z[:, 0] * _tree(_in_order(_every_eighth(e[token].unsqueeze(0))))
            rows.append((dot - zero) * weight.row_scale)
        else:
            lane = _in_order(sums * (s * unit[token]).unsqueeze(-1))
            zero = _in_order(_every_eighth((s * z) * e[token]))
            rows.append(_tree(lane - zero) * weight.row_scale)
    result = torch.stack(rows)
    return (result if bias is None else result + bias.to(torch.float32)).to(x.dtype)


def units_per_tile(in_features: int, inputs_per_scale: int) -> int | None:
    """Units that share a scale in a block of 128; None for groups that are not multiplied in integers."""
    if inputs_per_scale >= in_features or inputs_per_scale % TILE == 0:
        return 1
    return TILE // inputs_per_scale if inputs_per_scale in (32, 64) else None


def _by_unit(values: Tensor, weight: PackedWeight, per_block: int) -> Tensor:
    """Values of groups, `(out, groups)`, as `(out, units)`; units behind the last group are zero."""
    count = tiles.tiles_per_row(weight.shape[1]) * per_block
    repeats = max(1, count if weight.groups == 1 else weight.inputs_per_scale // TILE)
    values = values.repeat_interleave(repeats, dim=1)[:, :count]
    return F.pad(values, (0, count - values.shape[1]))


def _in_order(terms: Tensor) -> Tensor:
    """The sum of `(rows, terms, lanes)` over terms, from the first to the last."""
    total = torch.zeros_like(terms[:, 0])
    for term in terms.unbind(1):
        total = total + term
    return total


def _every_eighth(values: Tensor) -> Tensor:
    """`(rows, units)` as terms of eight lanes, `(rows, terms, 8)`, filled up with zeros."""
    return affine.split_groups(values, LANES)


def _tree(lanes: Tensor) -> Tensor:
    for half in (4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes.squeeze(-1)


def _dense_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """As floats. Gradients reach `x`; rows are dequantized panel by panel, so that they are multiplied from a cache."""
    size = max(1, PANEL // max(1, weight.shape[1]))
    native = weight.native
    if native is None or not _reads(x):
        starts = range(0, weight.shape[0], size)
        panels = [F.linear(x, weight.dense(x.dtype, slice(start, start + size))) for start in starts]
        result = torch.cat(panels, dim=-1) if panels else x.new_empty(*x.shape[:-1], 0)
        return result if bias is None else result + bias.to(x.dtype)
    # New memory costs more than what is done in it: one panel is written over.
    dtype = _multiplied_in(x.dtype)
    rows = x.reshape(-1, weight.shape[1]).to(dtype)
    result = torch.empty(len(rows), weight.shape[0], dtype=dtype)
    panel = torch.empty(min(size, weight.shape[0]), weight.shape[1], dtype=dtype)
    for start in range(0, weight.shape[0], size):
        count = min(size, weight.shape[0] - start)
        part = packed.dense(native, dtype, start, count, panel[:count])
        torch.mm(rows, part.t(), out=result[:, start : start + count])
    if bias is not None:
        result += bias
    return result.view(*x.shape[:-1], weight.shape[0]).to(x.dtype)


@cache
def _multiplied_in(dtype: torch.dtype) -> torch.dtype:
    """What a CPU multiplies in: float32, unless it has instructions for bfloat16, six times as slow without them."""
    fast = torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    return dtype if dtype == fast else torch.float32


def _halves(codes: Tensor, scale: Tensor, zero_point: Tensor, inputs_per_scale: int) -> tuple[Tensor, Tensor]:
    """Scales as float16, and the power of two of each row that they are multiplied by.

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


@library.custom_op("quept::packed_linear", mutates_args=())
def _operator(
    x: Tensor,
    codes: Tensor,
    scale: Tensor | None,
    row_scale: Tensor,
    zero_point: Tensor,
    bias: Tensor | None,
    bits: int,
    inputs_per_scale: int,
    exact: bool,
) -> Tensor:
    shape = (len(codes), x.shape[-1])
    weight = PackedWeight(shape, bits, inputs_per_scale, codes, scale, row_scale, zero_point)
    return packed_linear(x, weight, bias, exact=exact)


@_operator.register_fake
def _(x: Tensor, codes: Tensor, *others: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(codes))
