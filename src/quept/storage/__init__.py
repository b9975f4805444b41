"""Artifacts on disk: safetensors shards and a JSON manifest, checked before they are used."""

from quept.formats.dtypes import DTYPES
from quept.storage.artifact import load, save
from quept.storage.manifest import BlockError, Manifest, Provenance, is_artifact, read_manifest

__all__ = ["DTYPES", "BlockError", "Manifest", "Provenance", "is_artifact", "load", "read_manifest", "save"]
