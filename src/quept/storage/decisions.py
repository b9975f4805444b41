"""What a calibration keeps of what it learned in each block, where it was judged against plain rounding."""

from collections.abc import Iterable, Mapping
from typing import Any

from quept.config import Activations
from quept.layers import ElasticLinear, Quantizer, quantizers_of
from quept.precision import attention_operands, elastic_linears
from quept.storage.manifest import BlockError, Manifest


def keep(
    decisions: Iterable[BlockError],
    linears: Iterable[ElasticLinear],
    quantizers: Iterable[Quantizer],
    activations: Activations,
) -> None:
    """Let the linears and the quantizers of one block run what was decided for it."""
    decisions = list(decisions)
    rounded = frozenset(each.bits for each in decisions if each.weights == "rounding")
    whole = frozenset(activations.bits_for(each.bits) for each in decisions if each.ranges == "whole")
    for linear in linears:
        linear.keep_rounding(rounded)
    for quantizer in quantizers:
        quantizer.whole_bits = frozenset(bits for bits in whole if bits is not None)


def keep_all(model: Any, manifest: Manifest) -> None:
    """Let the blocks of a loaded model run what was decided for them."""
    linears, operands = elastic_linears(model), attention_operands(model)
    decisions: dict[str, list[BlockError]] = {}
    for each in manifest.block_errors:
        decisions.setdefault(each.block, []).append(each)
    for block, decided in decisions.items():
        layers = _inside(block, linears)
        keep(decided, layers, quantizers_of(layers, _inside(block, operands)), manifest.recipe.activations)


def describe(decisions: Iterable[BlockError], bits: int) -> str:
    """Return in a few words what is kept at a bit-width: `learned`, `rounding`, or in how many blocks which."""
    found = [each for each in decisions if each.bits == bits]
    rounded = sum(each.is_baseline for each in found)
    whole = sum(each.ranges == "whole" and not each.is_baseline for each in found)
    if rounded == len(found):
        return "rounding"
    parts = ["learned"]
    if rounded:
        parts.append(f"rounding in {rounded} of {len(found)} blocks")
    if whole:
        parts.append(f"whole ranges in {whole} of {len(found)}")
    return ", ".join(parts)


def _inside(block: str, parts: Mapping[str, Any]) -> list[Any]:
    return [part for path, part in parts.items() if path.startswith(f"{block}.")]
