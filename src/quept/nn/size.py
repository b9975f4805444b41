"""What a model occupies at a width, computed: its codes packed without waste, and everything that is not quantized."""

from torch import nn

from quept.nn.elastic import ElasticLinear

SCALE_BYTES = 2  # float16


def packed_bytes(model: nn.Module, bits: int) -> int:
    """Bytes of the model with every elastic weight packed at `bits`.

    Counts `bits` per weight, and per scale two bytes and a zero point of `bits`; biases, norms and embeddings as they
    are stored, tied weights once. This is the size at that width alone; an artifact holds the master weights.
    """
    weights, scales = 0, 0
    for layer in _elastic(model):
        weights += layer.weight.numel()
        scales += layer.out_features * layer.scales_per_row(bits)
    return _unquantized_bytes(model) + (weights * bits + scales * bits + 7) // 8 + scales * SCALE_BYTES


def full_precision_bytes(model: nn.Module) -> int:
    """Bytes of the model as it was before calibration, in the dtype it is held in."""
    masters = sum(layer.weight.numel() * layer.weight.element_size() for layer in _elastic(model))
    return _unquantized_bytes(model) + masters


def _unquantized_bytes(model: nn.Module) -> int:
    elastic = {id(value) for layer in _elastic(model) for value in layer.parameters() if value is not layer.bias}
    return sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in elastic)


def _elastic(model: nn.Module) -> list[ElasticLinear]:
    return [module for module in model.modules() if isinstance(module, ElasticLinear)]
