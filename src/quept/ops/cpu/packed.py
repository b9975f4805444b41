"""Kernels for packed weights: products with them, their dense form, and codes rebuilt from what is stored."""

from dataclasses import dataclass
from functools import cache
from types import NotImplementedType
from typing import Any

import torch
from torch import Tensor

from quept.formats.dtypes import NUMBERS
from quept.formats.packed import PackedWeight
from quept.formats.stored import StoredWeight
from quept.ops.cpu import extension
from quept.ops.cpu.tensors import addresses, is_plain, is_readable
from quept.ops.reference.packed import PANEL

FEW = 64  # tokens that are multiplied in integers; from about 256 on, floats are as fast where AVX2 is what there is
_UNKNOWN: Any = object()


@dataclass(frozen=True, eq=False)
class NativeWeight:
    """A packed weight as the extension module knows it: the addresses of tensors, which it keeps alive."""

    handle: Any
    multiplies_integers: bool
    multiply: Any
    held: tuple[Tensor | None, ...]


def native_weight(weight: PackedWeight) -> NativeWeight | None:
    """Return a weight's handle; None without kernels, for tensors that they cannot read, and for an empty weight."""
    known: NativeWeight | None = weight.handles.get("cpu", _UNKNOWN)
    if known is _UNKNOWN:
        known = weight.handles["cpu"] = _new_native_weight(weight)
    return known


def packed_linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, exact: bool = False
) -> Tensor | NotImplementedType:
    """`ops.packed_linear`: few tokens in integers unless `exact`, all others as floats of dequantized panels."""
    # A matrix of a few thousand weights takes as long as ten calls of PyTorch's: what is not needed is left out.
    native = native_weight(weight)
    dtype, shape = x.dtype, x.shape
    out_features, in_features = weight.shape
    if native is None or shape[-1] != in_features or dtype not in NUMBERS or not is_readable(x):
        return NotImplemented
    if bias is not None and (bias.shape != (out_features,) or not is_readable(bias)):
        return NotImplemented
    if exact or not native.multiplies_integers or x.numel() > FEW * in_features:
        return _multiply_panels(x, weight, native, bias)
    address = 0
    if bias is not None:
        if bias.dtype is not dtype or not bias.is_contiguous():
            bias = bias.to(dtype).contiguous()
        address = bias.data_ptr()
    if x.is_contiguous():
        tokens, stride = x.numel() // in_features, in_features
    else:
        x = x.reshape(-1, in_features) if x.dim() != 2 else x
        x = x if x.stride(1) == 1 else x.contiguous()
        tokens, stride = x.shape[0], x.stride(0)
    result = torch.empty((*shape[:-1], out_features), dtype=dtype)
    if tokens:
        native.multiply(
            native.handle,
            *(x.data_ptr(), NUMBERS[dtype], tokens, stride, address, result.data_ptr(), torch.get_num_threads()),
        )
    return result


def dequantize(weight: PackedWeight, dtype: torch.dtype, rows: slice | None = None) -> Tensor | NotImplementedType:
    """`ops.dequantize` of rows that follow each other."""
    native = native_weight(weight)
    start, stop, step = (rows or slice(None)).indices(weight.shape[0])
    if native is None or step != 1 or dtype not in NUMBERS:
        return NotImplemented
    result = torch.empty(max(0, stop - start), weight.shape[1], dtype=dtype)
    _fill(native, start, result)
    return result


def rebuild(
    store: StoredWeight, bits: int, inputs_per_scale: int, symmetric: bool
) -> PackedWeight | NotImplementedType:
    """`ops.rebuild`, every row in one pass."""
    given = (
        *(store.master, store.master_scale, store.up, store.down),
        *(store.adapter_scale, store.clip_ratios, store.mask),
    )
    if not store.master.numel() or not all(each is None or is_plain(each) for each in given):
        return NotImplemented
    if not extension.available():
        return NotImplemented
    store.check_groups(bits, inputs_per_scale)
    weight = PackedWeight.empty(store.shape, bits, inputs_per_scale)
    native = native_weight(weight)
    assert native is not None
    kept = [None if each is None else each.contiguous() for each in given]
    places = addresses(*kept)
    rank = 0 if store.down is None else len(store.down)
    extension.native().rebuild(
        *(native.handle, symmetric, *places[:2], store.master_group, *places[2:4], rank, *places[4:]),
        torch.get_num_threads(),
    )
    return weight


def read_bandwidth(size: int = 2**28, passes: int = 5) -> float:
    """Return the bytes per second at which PyTorch's threads read memory: the fastest of some passes over `size` bytes.

    `InvalidInput` where there are no kernels.
    """
    return float(extension.require().read_bandwidth(size, passes, torch.get_num_threads())[0])


def _new_native_weight(weight: PackedWeight) -> NativeWeight | None:
    held = weight.codes, weight.scale, weight.row_scale, weight.zero_point
    if not weight.shape[0] * weight.shape[1] or not all(each is None or is_plain(each) for each in held):
        return None
    if not extension.available():
        return None
    module = extension.native()
    handle = module.PackedWeight(*addresses(*held), *weight.shape, weight.bits, weight.inputs_per_scale)
    return NativeWeight(handle, handle.multiplies_integers, module.multiply, held)


def _fill(native: NativeWeight, first: int, result: Tensor) -> None:
    """Dequantize rows from `first` on into `result`, `(rows, in)`, contiguous and of a type that kernels know."""
    if len(result):
        place = first, len(result), result.data_ptr(), NUMBERS[result.dtype]
        extension.native().dense(native.handle, *place, torch.get_num_threads())


def _multiply_panels(x: Tensor, weight: PackedWeight, native: NativeWeight, bias: Tensor | None) -> Tensor:
    """Multiply as floats, panel by panel, so that rows come from a cache."""
    out_features, in_features = weight.shape
    # New memory costs more than what is done in it: one panel is written over.
    dtype = _multiplied_in(x.dtype)
    rows = x.reshape(-1, in_features).to(dtype)
    result = torch.empty(len(rows), out_features, dtype=dtype)
    size = max(1, PANEL // in_features)
    panel = torch.empty(min(size, out_features), in_features, dtype=dtype)
    for start in range(0, out_features, size):
        part = panel[: min(size, out_features - start)]
        _fill(native, start, part)
        torch.mm(rows, part.t(), out=result[:, start : start + len(part)])
    if bias is not None:
        result += bias
    return result.view(*x.shape[:-1], out_features).to(x.dtype)


@cache
def _multiplied_in(dtype: torch.dtype) -> torch.dtype:
    """Return float32, unless the CPU has instructions for bfloat16, which is six times slower without them."""
    fast = torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    return dtype if dtype == fast else torch.float32
