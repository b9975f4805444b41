"""Generating text with a key-value cache that is stored quantized."""

from quept.generation.cache import KeyValueCache

__all__ = ["KeyValueCache"]
