"""Packed weights: rebuilt from what is stored, dequantized, and multiplied by activations."""

import torch
from torch import Tensor
from torch.nn import functional as F

from quept.formats.dtypes import NUMBERS
from quept.formats.packed import PackedWeight
from quept.formats.stored import StoredWeight
from quept.ops.registry import operator

PANEL = 2**18  # weights dequantized at a time: they stay in a second-level cache


@operator
def rebuild(store: StoredWeight, bits: int, inputs_per_scale: int, symmetric: bool) -> PackedWeight:
    """Return the weight at `bits`: `store.codes` packed, with a scale for every `inputs_per_scale` inputs.

    `ValueError` for bits or groups that the stored weight does not have.
    """
    return PackedWeight.of(*store.codes(bits, inputs_per_scale, symmetric), bits, inputs_per_scale)


@operator
def dequantize(weight: PackedWeight, dtype: torch.dtype, rows: slice | None = None) -> Tensor:
    """Return `scale * (code - zero_point)` of all or some rows, `(rows, in)`: float32, rounded once to `dtype`."""
    return weight.dequantize(dtype, rows)


@operator
def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, exact: bool = False) -> Tensor:
    """Return `x @ W.T + bias`: `(..., in)` to `(..., out)`, in the dtype of `x`, float32, bfloat16 or float16.

    `bias` is `(out,)`. Unless `exact`, a kernel may round the activations of few tokens to eight bits and multiply
    codes, to the bits of `reference.tiles.tile_product`. The reference multiplies floats, and gradients reach `x`.
    `ValueError` where shapes or types do not fit.
    """
    out_features, in_features = weight.shape
    if x.shape[-1] != in_features:
        raise ValueError(f"the activation has {x.shape[-1]} channels, the weight {in_features}")
    if x.dtype not in NUMBERS:
        raise ValueError(f"the activation is {x.dtype}; it has to be float32, bfloat16 or float16")
    if bias is not None and bias.shape != (out_features,):
        raise ValueError(f"the bias is {tuple(bias.shape)}; it has to be {(out_features,)}")
    # Panel by panel, so that rows are multiplied from a cache.
    size = max(1, PANEL // max(1, in_features))
    starts = range(0, out_features, size)
    panels = [F.linear(x, dequantize(weight, x.dtype, slice(start, start + size))) for start in starts]
    result = torch.cat(panels, dim=-1) if panels else x.new_empty(*x.shape[:-1], 0)
    return result if bias is None else result + bias.to(x.dtype)
