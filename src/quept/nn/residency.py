"""Derived weights kept between forward passes, within a budget."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class DerivedWeights:
    """Weights derived for a width, by layer path and width; the least recently used go first.

    `budget` is in bytes; None means no limit. A weight larger than the whole budget is derived at each use.
    """

    budget: int | None = None
    resident: int = 0
    _weights: OrderedDict[tuple[str, int], Tensor] = field(default_factory=OrderedDict)

    def get(self, path: str, bits: int, derive: Callable[[int], Tensor]) -> Tensor:
        """The weight of layer `path` at `bits`, derived now unless it is resident."""
        key = (path, bits)
        weight = self._weights.get(key)
        if weight is not None:
            self._weights.move_to_end(key)
            return weight
        weight = derive(bits)
        size = weight.numel() * weight.element_size()
        if self.budget is not None and size > self.budget:
            return weight
        while self.budget is not None and self.resident + size > self.budget:
            self._evict(next(iter(self._weights)))
        self._weights[key] = weight
        self.resident += size
        return weight

    def forget(self, path: str) -> None:
        """Drop what was derived from this layer, because its parameters changed or moved."""
        for key in [key for key in self._weights if key[0] == path]:
            self._evict(key)

    def widths(self) -> dict[int, int]:
        """Resident bytes by width."""
        sizes: dict[int, int] = {}
        for (_, bits), weight in self._weights.items():
            sizes[bits] = sizes.get(bits, 0) + weight.numel() * weight.element_size()
        return dict(sorted(sizes.items()))

    def _evict(self, key: tuple[str, int]) -> None:
        weight = self._weights.pop(key)
        self.resident -= weight.numel() * weight.element_size()
