"""The model families that quept knows, as data. To add one, see docs/adding-an-architecture.md."""

from quept.errors import InvalidInput
from quept.models.base import Architecture, BlockContext, Features, Residual, Site, Task, Values
from quept.models.language import (
    GEMMA2,
    GEMMA3,
    GPT2,
    GPT_NEOX,
    LLAMA,
    MISTRAL,
    OPT,
    PHI3,
    QWEN2,
    QWEN3,
)
from quept.models.vision import BEIT, DEIT, DINOV2, SWIN, VIT
from quept.versions import warn_untested

warn_untested()

ARCHITECTURES: dict[str, Architecture] = {
    architecture.model_type: architecture
    for architecture in (
        *(LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, OPT, GPT_NEOX, GPT2),
        *(VIT, DEIT, SWIN, DINOV2, BEIT),
    )
}


def architecture_of(model_type: str) -> Architecture:
    """The architecture of a transformers `model_type`; `InvalidInput` lists the known ones."""
    try:
        return ARCHITECTURES[model_type]
    except KeyError:
        raise InvalidInput(
            f"The architecture {model_type!r} is not known to quept, which knows {', '.join(sorted(ARCHITECTURES))}. "
            "Adding one takes about twenty lines of data: see docs/adding-an-architecture.md."
        ) from None


__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "BlockContext",
    "Features",
    "Residual",
    "Site",
    "Task",
    "Values",
    "architecture_of",
]
