"""Derived weights kept between forward passes, within a budget."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast


class Sized(Protocol):
    """A form of a weight: a tensor, or what an integer product wants."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""


Form = TypeVar("Form", bound=Sized)


@dataclass
class DerivedWeights:
    """Weights derived for a width, by layer path, width and form; the least recently used go first.

    `budget` is in bytes; None means no limit. A weight larger than the whole budget is derived at each use.
    """

    budget: int | None = None
    resident: int = 0
    _weights: OrderedDict[tuple[str, int, str], Sized] = field(default_factory=OrderedDict)

    def get(self, path: str, bits: int, derive: Callable[[int], Form], form: str = "dense") -> Form:
        """The weight of layer `path` at `bits` in the form that `derive` gives, made now unless it is resident."""
        key = (path, bits, form)
        kept = self._weights.get(key)
        if kept is not None:
            self._weights.move_to_end(key)
            return cast(Form, kept)
        weight = derive(bits)
        size = weight.nbytes
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
        for (_, bits, _), weight in self._weights.items():
            sizes[bits] = sizes.get(bits, 0) + weight.nbytes
        return dict(sorted(sizes.items()))

    def _evict(self, key: tuple[str, int, str]) -> None:
        self.resident -= self._weights.pop(key).nbytes
