"""Rounding to nearest, the baseline that every method is compared with."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from quept.layers.attention import AttentionOperands, OperandSetting
from quept.layers.linear import ElasticLinear
from quept.layers.quantizers import Quantizer
from quept.layers.setting import Adjustable, scope


@contextmanager
def nearest(
    layers: Iterable[ElasticLinear],
    bits: int | None,
    activation_bits: int | None,
    operands: Iterable[AttentionOperands] = (),
) -> Iterator[None]:
    """Within: the layers run with weights and inputs rounded to nearest on unclipped ranges, in this thread alone.

    So do attentions' `operands`. None is full precision.
    """
    settings: dict[Adjustable[Any], Any] = {layer: layer.nearest_at(bits, activation_bits) for layer in layers}
    settings |= {each: OperandSetting(activation_bits, unclipped=True) for each in operands}
    with scope(settings):
        yield


def quantizers_of(layers: Iterable[Any], operands: Iterable[AttentionOperands]) -> list[Quantizer]:
    """Return the quantizers of the layers' inputs and of attentions' operands, each once."""
    inputs = [layer.input.quantizer for layer in layers if layer.input is not None]
    found = [quantizer for each in operands for quantizer in each.quantizers()]
    return list(dict.fromkeys((*inputs, *found)))
