"""The tensors that a model is stored as, and copies that share them."""

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from quept.layers.eight_bit import EightBitStore
from quept.layers.keyvalues import KeyValues
from quept.layers.linear import ElasticLinear
from quept.layers.quantizers import Quantizer


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return all tensors that an artifact stores, each once, by name; shared ones under their first name."""
    seen: set[int] = set()
    unique = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor.detach()
    return unique


def learned_names(module: nn.Module) -> set[str]:
    """Return the names of the tensors that calibration learns; shared modules stand under each of their paths."""
    return {
        f"{path}.{name}" if path else name
        for path, part in module.named_modules(remove_duplicate=False)
        if isinstance(part, ElasticLinear | EightBitStore | Quantizer | KeyValues)
        for name in part.learned()
    }


def copy_sharing(module: nn.Module, others: Iterable[Tensor] = ()) -> Any:
    """Return a copy of a module that shares its tensors: parameters, buffers, and `others` that it holds."""
    shared = (*module.parameters(), *module.buffers(), *others)
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
