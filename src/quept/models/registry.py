"""The registry of architectures: those that quept ships, and those that are registered from outside."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from quept.errors import InvalidInput
from quept.models.architecture import GUIDE, Architecture
from quept.models.language import GEMMA2, GEMMA3, GPT2, GPT_NEOX, LLAMA, MISTRAL, OPT, PHI3, QWEN2, QWEN3
from quept.models.vision import BEIT, DEIT, DINOV2, SWIN, VIT

_SHIPPED = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, OPT, GPT_NEOX, GPT2, VIT, DEIT, SWIN, DINOV2, BEIT)
_registered = {architecture.model_type: architecture for architecture in _SHIPPED}

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(_registered)
"""All known architectures by `model_type`, to be read; `register_architecture` adds to them."""


def register_architecture(architecture: Architecture, *, replace: bool = False) -> None:
    """Make a model family known in this process: to `calibrate`, `load` and everything else.

    Its paths are checked against a model as soon as one is calibrated or loaded.

    Args:
        architecture: the family as data.
        replace: allow to replace the architecture of a `model_type` that is known already.

    Raises `InvalidInput` for another type, and for a `model_type` that is known already.
    """
    _check_type(architecture)
    if architecture.model_type in _registered and not replace:
        raise InvalidInput(
            f"The architecture {architecture.model_type!r} is known already; pass replace=True to replace it, or "
            "give the family a model_type of its own."
        )
    _registered[architecture.model_type] = architecture


def architecture_of(model_type: str) -> Architecture:
    """Return the architecture of a transformers `model_type`; raises `InvalidInput` for one that is not known."""
    try:
        return _registered[model_type]
    except KeyError:
        raise InvalidInput(
            f"The architecture {model_type!r} is not known to quept, which knows {', '.join(sorted(_registered))}. "
            f"Describe it in about twenty lines of data, see {GUIDE}, and pass that to quept.register_architecture, or "
            "to quept.calibrate as architecture=."
        ) from None


def architecture_for(config: Any, given: Architecture | None = None) -> Architecture:
    """Return the architecture for a model's configuration: `given`, or the registered one.

    Raises `InvalidInput` where `given` is of another `model_type`, or none is registered.
    """
    if given is None:
        return architecture_of(config.model_type)
    _check_type(given)
    if given.model_type != config.model_type:
        raise InvalidInput(
            f"The architecture is for model_type {given.model_type!r}, but the model is a {config.model_type!r}; give "
            "the architecture of the model's family."
        )
    return given


def _check_type(architecture: Any) -> None:
    if not isinstance(architecture, Architecture):
        raise InvalidInput(
            f"The architecture is a {type(architecture).__name__}; give a quept.models.Architecture, see {GUIDE}."
        )
