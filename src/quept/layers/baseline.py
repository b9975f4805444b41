"""Plain rounding to nearest, what every method is compared with."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from quept.layers.attention import AttentionOperands
from quept.layers.linear import ElasticLinear
from quept.layers.quantizers import Quantizer


@contextmanager
def nearest(
    layers: Iterable[ElasticLinear],
    bits: int | None,
    activation_bits: int | None,
    products: Iterable[AttentionOperands] = (),
) -> Iterator[None]:
    """Within: the layers run with weights and inputs rounded to nearest on whole ranges, whatever widths are set.

    So do the operands of `products`. What has no width runs at full precision.
    """
    layers, products = list(layers), list(products)
    before = [(layer.bits, layer.activation_bits) for layer in layers]
    operands = [each.bits for each in products]
    quantizers = quantizers_of(layers, products)
    try:
        for layer in layers:
            if bits is None:
                layer.bits = None
            else:
                layer.override = layer.nearest(bits)
            layer.activation_bits = activation_bits
        for each in products:
            each.bits = activation_bits
        if activation_bits is not None:
            for quantizer in quantizers:
                quantizer.override = quantizer.min_max_grid(activation_bits)
        yield
    finally:
        for layer, (weights, inputs) in zip(layers, before, strict=True):
            layer.override, layer.bits, layer.activation_bits = None, weights, inputs
        for each, given in zip(products, operands, strict=True):
            each.bits = given
        for quantizer in quantizers:
            quantizer.override = None


def quantizers_of(layers: Iterable[ElasticLinear], products: Iterable[AttentionOperands]) -> list[Quantizer]:
    """What rounds the layers' inputs, and the products' operands, each once."""
    inputs = [layer.input.quantizer for layer in layers if layer.input is not None]
    operands = [quantizer for each in products for quantizer in each.quantizers()]
    return list(dict.fromkeys((*inputs, *operands)))
