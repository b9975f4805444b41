"""Finding the layer at which the values in a model stop being finite."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

OUTLIER = 1e4  # times the median: far above what trained weights hold, which reach some hundreds


@dataclass(frozen=True)
class Overflow:
    """A layer with NaN or infinite values: its path, whether these are in what it is given, and its weight."""

    path: str
    given: bool
    weight: Tensor | None

    def __str__(self) -> str:
        found = f"{'what flows into' if self.given else 'the output of'} {self.path}"
        return found if self.given or self.weight is None else f"{found}, {_described(self.weight)},"


def first_overflow(module: nn.Module, run: Callable[[], Any], prefix: str = "") -> Overflow | None:
    """Return where values first are not finite while `run` runs a module, None where all are.

    `prefix` comes in front of paths in the module.
    """
    found: list[Overflow] = []

    def look(path: str, layer: nn.Module, values: Any, given: bool) -> None:
        if not found and not _finite(values):
            found.append(Overflow(path, given, _weight(layer)))

    with ExitStack() as stack, torch.no_grad():
        for name, layer in module.named_modules():
            path = ".".join(part for part in (prefix, name) if part) or type(module).__name__
            if _weight(layer) is not None:  # others may be given masks
                before = lambda layer, args, path=path: look(path, layer, args[:1], True)  # noqa: E731
                stack.callback(layer.register_forward_pre_hook(before).remove)
            after = lambda layer, args, output, path=path: look(path, layer, output, False)  # noqa: E731
            stack.callback(layer.register_forward_hook(after).remove)
        run()
    return found[0] if found else None


def outliers(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the path of each layer that holds a weight far above all others of it, and a description of that weight."""
    for path, layer in module.named_modules():
        weight = _weight(layer)
        if weight is not None and float(weight.abs().amax()) > OUTLIER * _median(weight):
            yield path, _described(weight)


def _described(weight: Tensor) -> str:
    if not bool(torch.isfinite(weight).all()):
        return "whose weight holds NaN or infinite values"
    largest, median = float(weight.abs().amax()), _median(weight)
    place = [int(index) for index in torch.unravel_index(weight.abs().argmax(), weight.shape)]
    return f"whose largest weight is {largest:.3g} at {place} (the median is {median:.3g})"


def _median(weight: Tensor) -> float:
    return float(weight.float().abs().median())


def _weight(layer: nn.Module) -> Tensor | None:
    """Return the weight of a layer that multiplies by one, or None."""
    weight = getattr(layer, "weight", None)
    floats = isinstance(weight, Tensor) and weight.is_floating_point() and weight.numel() > 0
    return weight.detach() if isinstance(weight, Tensor) and floats else None


def _finite(values: Any) -> bool:
    """Return whether the states in the output of a layer are finite, the first of several things it may be."""
    if isinstance(values, Tensor):
        return not values.is_floating_point() or bool(torch.isfinite(values).all())
    if isinstance(values, tuple | list):
        return not values or _finite(values[0])
    return all(_finite(value) for value in values.values()) if isinstance(values, dict) else True
