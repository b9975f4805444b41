"""Sizes of a model at a bit-width, computed: its codes packed without waste, and everything that is not quantized.

`stored` is the dtype the checkpoint keeps its weights in; a model may be held in another one while it runs.
"""

from collections.abc import Iterable

import torch
from torch import nn

from quept.config import FULL
from quept.formats.packed import PackedWeight
from quept.layers.linear import ElasticLinear

SCALE_BYTES = 2  # float16


def packed_bytes(model: nn.Module, bits: int, stored: torch.dtype) -> int:
    """Return the bytes of a model with every elastic weight packed at `bits`; see `linear_bits` for what counts.

    Biases, norms and embeddings count in the stored dtype, tied weights once. This is the size at that bit-width alone;
    an artifact holds the master weights.
    """
    return _whole(model, (linear_bits(layer, bits, stored) for layer in _elastic(model)), stored)


def current_bytes(model: nn.Module, stored: torch.dtype) -> int:
    """Return the bytes of a model with every weight packed at the bit-width that its layer runs at now."""
    return _whole(model, (linear_bits(layer, layer.bits or FULL, stored) for layer in _elastic(model)), stored)


def mean_bits(model: nn.Module) -> float:
    """Return the mean bits over all elastic weights at the precision in force; whole where all have the same."""
    layers = _elastic(model)
    total = sum((layer.bits or FULL) * layer.numel for layer in layers)
    return total / sum(layer.numel for layer in layers)


def full_precision_bytes(model: nn.Module, stored: torch.dtype) -> int:
    """Return the bytes of the model before calibration."""
    return packed_bytes(model, FULL, stored)


def unquantized_bytes(model: nn.Module, stored: torch.dtype) -> int:
    """Return the bytes that no bit-width changes: parameters outside the elastic layers, and those layers' biases."""
    return _whole(model, (), stored)


def linear_bits(layer: ElasticLinear, bits: int, stored: torch.dtype) -> int:
    """Return the bits, not bytes, that a layer's weight takes when it is packed at `bits` without waste.

    `bits` per weight, and per scale two bytes and a zero point of `bits`. Adapters and rounding masks are in the codes
    already, and clipping is in the scales: they take nothing beside them. At full precision, the weight in `stored`;
    a layer with a bit-width of its own has that one at every other.
    """
    if bits == FULL:
        return layer.numel * stored.itemsize * 8
    bits = layer.spec.bits_for(bits)
    scales = layer.out_features * layer.scales_per_row(bits)
    return (layer.numel + scales) * bits + scales * SCALE_BYTES * 8


def resident_bytes(model: nn.Module, bits: int) -> int:
    """Return the bytes of all linears' packed weights at `bits` in memory; convolutions are not packed."""
    total = 0
    for layer in _elastic(model):
        own = layer.spec.bits_for(bits)
        shape = layer.out_features, layer.in_features
        if layer.is_matrix and layer.has_codes(own):
            total += PackedWeight.bytes_of(shape, own, layer.spec.inputs_per_scale(own, layer.in_features))
        else:
            total += layer.numel * layer.dtype.itemsize
    return total


def _whole(model: nn.Module, linears: Iterable[int], stored: torch.dtype) -> int:
    return _unquantized(model) * stored.itemsize + (sum(linears) + 7) // 8


def _unquantized(model: nn.Module) -> int:
    elastic = {id(value) for layer in _elastic(model) for value in layer.parameters() if value is not layer.bias}
    return sum(value.numel() for value in model.parameters() if id(value) not in elastic)


def _elastic(model: nn.Module) -> list[ElasticLinear]:
    return [module for module in model.modules() if isinstance(module, ElasticLinear)]
