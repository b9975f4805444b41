"""Generating text with a key-value cache that is stored quantized."""

from quept.generation.arguments import cache_arguments, cache_of
from quept.generation.cache import KeyValueCache

__all__ = ["KeyValueCache", "cache_arguments", "cache_of"]
