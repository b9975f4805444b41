"""The name that the installed transformers has for a key-value cache: `cache` from 5.24 on, `past_key_values` before.

Each name is unknown, or deprecated, to the releases on the other side.
"""

from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE_NAME = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"


def cache_arguments(cache: Any) -> dict[str, Any]:
    """Return the keyword argument that gives `cache` to a model or to its `generate`."""
    return {CACHE_NAME: cache}


def cache_of(output: Any) -> Any:
    """Return the key-value cache in a model's output, None where it has none."""
    return getattr(output, CACHE_NAME)
