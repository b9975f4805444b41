"""Quantized attention in transformers' models, through transformers' own interface for attention implementations.

With quantized keys and values the model's own attention ("sdpa" or "eager") runs on rotated, quantized keys and values.
With quantized operands `AttentionOperands` computes the attention. A model in which neither has a bit-width in force
computes as before, bit for bit.
"""

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from quept.config import Activations
from quept.errors import InvalidInput
from quept.layers.attention import AttentionOperands
from quept.layers.keyvalues import KeyValues

ATTRIBUTE = "key_values"  # of an attention module
PRODUCTS = "products"  # of an attention module


def attach(
    block: nn.Module, block_path: str, attention: str, rotates_values: bool, heads: int = 1, size: int = 1
) -> KeyValues:
    """Attach a `KeyValues` at full precision to the attention at path `attention` of the block at `block_path`.

    It becomes the attention's submodule `key_values` and replaces an earlier one. `heads` and `size` are those of the
    keys. Returns it. Raises `InvalidInput` for an attention implementation other than "sdpa" and "eager".
    """
    module = block.get_submodule(attention)
    install(module.config)
    key_values = KeyValues(f"{block_path}.{attention}", rotates_values, heads, size)
    device = next(module.parameters()).device
    if device.type != "meta":  # in a model without weights the center stays zero
        key_values.to(device)
    setattr(module, ATTRIBUTE, key_values)
    return key_values


def attach_operands(block: nn.Module, block_path: str, attention: str, spec: Activations) -> AttentionOperands:
    """Attach an `AttentionOperands` to the attention at path `attention` of the block at `block_path`.

    It becomes the attention's submodule `products`. Returns it. Raises `InvalidInput` as `attach` does.
    """
    module: Any = block.get_submodule(attention)
    install(module.config)
    products = AttentionOperands(f"{block_path}.{attention}", spec, next(module.parameters()).device)
    setattr(module, PRODUCTS, products)
    return products


def install(config: Any) -> None:
    """Route the attention of models with this transformers configuration through what is attached; idempotent.

    Raises `InvalidInput` for an attention implementation other than "sdpa" and "eager".
    """
    chosen = config._attn_implementation  # read once: another thread may install at the same time
    if chosen in _WRAPPERS.values():
        return
    if chosen not in _BASES:
        raise InvalidInput(
            f"The model's attention implementation is {chosen!r}, in which nothing can be quantized; load "
            'the model with attn_implementation="sdpa", or "eager" where the family has no other.'
        )
    AttentionInterface.register(_WRAPPERS[chosen], _BASES[chosen])
    AttentionMaskInterface.register(_WRAPPERS[chosen], ALL_MASK_ATTENTION_FUNCTIONS[chosen])
    config._attn_implementation = _WRAPPERS[chosen]


def is_installed(config: Any) -> bool:
    """Return whether models with this transformers configuration route their attention through what is attached."""
    return config._attn_implementation in _WRAPPERS.values()


def _sdpa(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
    return _attend(ALL_ATTENTION_FUNCTIONS["sdpa"], module, query, key, value, attention_mask, **kwargs)


def _eager(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
    # Eager attention is not in the registry: every family defines its own in the module of its attention class.
    base = sys.modules[type(module).__module__].eager_attention_forward
    if getattr(module, "reorder_and_upcast_attn", False):
        base = _gpt2_upcast
    return _attend(base, module, query, key, value, attention_mask, **kwargs)


def _gpt2_upcast(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    """Run GPT-2's upcasting attention, which GPT-2 selects only under the name "eager"."""
    return module._upcast_and_reordered_attn(query, key, value, mask)


def _attend(
    base: Callable[..., Any],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **kwargs: Any,
) -> Any:
    """Run `base` on quantized keys and values.

    Returns the output, `(batch, tokens, heads, head size)`, and the attention weights or None.
    """
    products: AttentionOperands | None = getattr(module, PRODUCTS, None)
    if products is not None and products.are_rounded:
        scaling = kwargs.get("scaling")
        return products(query, key, value, mask, query.shape[-1] ** -0.5 if scaling is None else scaling), None
    key_values: KeyValues | None = getattr(module, ATTRIBUTE, None)
    if key_values is None:
        return base(module, query, key, value, mask, **kwargs)
    key_values.observe(key)
    if not key_values.were_handed_out(key):
        if key_values.bits is None:
            return base(module, query, key, value, mask, **kwargs)
        key, value = key_values.quantize(key, value)
    output, weights = base(module, key_values.rotate_queries(query), key, value, mask, **kwargs)
    return key_values.rotate_back(output), weights


_BASES = {"sdpa": _sdpa, "eager": _eager}
_WRAPPERS = {name: f"quept_{name}" for name in _BASES}
