"""What a model occupies at a width, computed: its codes packed without waste, and everything that is not quantized.

`stored` is the dtype the checkpoint keeps its weights in; a model may be held in another one while it runs.
"""

import torch
from torch import nn

from quept.nn.elastic import ElasticLinear
from quept.widths import FULL

SCALE_BYTES = 2  # float16


def packed_bytes(model: nn.Module, bits: int, stored: torch.dtype) -> int:
    """Bytes of the model with every elastic weight packed at `bits`.

    Counts `bits` per weight, and per scale two bytes and a zero point of `bits`; biases, norms and embeddings in the
    stored dtype, tied weights once. This is the size at that width alone; an artifact holds the master weights.
    """
    if bits == FULL:
        return full_precision_bytes(model, stored)
    weights, scales = 0, 0
    for layer in _elastic(model):
        weights += layer.weight.numel()
        scales += layer.out_features * layer.scales_per_row(bits)
    return _unquantized(model) * stored.itemsize + ((weights + scales) * bits + 7) // 8 + scales * SCALE_BYTES


def full_precision_bytes(model: nn.Module, stored: torch.dtype) -> int:
    """Bytes of the model before calibration."""
    return (_unquantized(model) + sum(layer.weight.numel() for layer in _elastic(model))) * stored.itemsize


def _unquantized(model: nn.Module) -> int:
    """Parameters outside the elastic layers, and those layers' biases."""
    elastic = {id(value) for layer in _elastic(model) for value in layer.parameters() if value is not layer.bias}
    return sum(value.numel() for value in model.parameters() if id(value) not in elastic)


def _elastic(model: nn.Module) -> list[ElasticLinear]:
    return [module for module in model.modules() if isinstance(module, ElasticLinear)]
