"""Plain rounding to nearest, what every method is compared with."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from quept.nn.elastic import ElasticLinear


@contextmanager
def nearest(layers: Iterable[ElasticLinear], bits: int | None, activation_bits: int | None) -> Iterator[None]:
    """Within: the layers run with weights and inputs rounded to nearest on whole ranges, whatever widths are set.

    What has no width runs at full precision.
    """
    layers = list(layers)
    before = [layer.activation_bits for layer in layers]
    try:
        for layer in layers:
            # Detached: a parameter that is assigned to a module becomes one of its own.
            layer.override = layer.weight.detach() if bits is None else layer.nearest(bits)
            layer.activation_bits = activation_bits
            if layer.input is not None and activation_bits is not None:
                layer.input.override = layer.input.whole_grid(activation_bits)
        yield
    finally:
        for layer, given in zip(layers, before, strict=True):
            layer.override, layer.activation_bits = None, given
            if layer.input is not None:
                layer.input.override = None
