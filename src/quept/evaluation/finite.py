"""Predictions that are not finite are refused: what is measured on them would look like a result."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quept.errors import InvalidInput
from quept.layers import ElasticLinear
from quept.layers.overflow import first_overflow
from quept.precision import precision_of


def check_finite(model: Any, logits: Tensor, run: Callable[[], object]) -> None:
    """Raise `InvalidInput` where a model's logits, as `run` gives them, are not finite; it names the first layer."""
    if bool(torch.isfinite(logits).all()):
        return
    found = first_overflow(model, run) if isinstance(model, nn.Module) else None
    where = "" if found is None else f"; {found} is the first that is not"
    dtype = str(logits.dtype).removeprefix("torch.")
    remedies = ["run it in float32"] if logits.dtype != torch.float32 else []
    remedies += ["leave this precision out"] if _is_quantized(model) else []
    advice = ", or ".join(["Correct the weights", *remedies])
    raise InvalidInput(f"The predictions of {type(model).__name__} in {dtype} are not finite{where}. {advice}.")


def check_full_precision(model: Any, logits: Tensor, run: Callable[[], object]) -> None:
    """Raise `InvalidInput` as `check_finite` does, for a model at full precision; a low one may fail, and is measured.

    Its perplexity is infinite then, and its images are classified wrongly.
    """
    if not bool(torch.isfinite(logits).all()) and not _is_quantized(model):
        check_finite(model, logits, run)


def _is_quantized(model: Any) -> bool:
    """Return whether any part of a model runs at a bit-width."""
    if not isinstance(model, nn.Module) or not any(isinstance(layer, ElasticLinear) for layer in model.modules()):
        return False
    return any(bits is not None for bits in precision_of(model).bits.values())
