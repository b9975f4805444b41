"""The model families that quept knows, as data, and what their models do. See docs/adding-an-architecture.md."""

from quept.models.architecture import Architecture
from quept.models.context import BlockContext
from quept.models.image_classification import IMAGE_CLASSIFICATION
from quept.models.opening import open_model
from quept.models.registry import ARCHITECTURES, architecture_for, architecture_of, register_architecture
from quept.models.sites import Features, Residual, Site, Values
from quept.models.task import Task
from quept.models.text_generation import TEXT_GENERATION
from quept.versions import warn_untested

warn_untested()

__all__ = [
    "ARCHITECTURES",
    "IMAGE_CLASSIFICATION",
    "TEXT_GENERATION",
    "Architecture",
    "BlockContext",
    "Features",
    "Residual",
    "Site",
    "Task",
    "Values",
    "architecture_for",
    "architecture_of",
    "open_model",
    "register_architecture",
]
