"""Derived weights kept between forward passes, within a budget."""

from collections import OrderedDict
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar, cast

from quept.forks import Lock, fork_safe_lock


class Sized(Protocol):
    """A form of a weight: a tensor, packed codes, or what an integer product wants."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""


Form = TypeVar("Form", bound=Sized)


class Key(NamedTuple):
    """The key of a weight: of the layer at `path`, at `bits`, as `form` (`"dense"`, `"packed"`, `"integers"`)."""

    path: str
    bits: int
    form: str


@dataclass
class WeightCache:
    """Weights derived for a bit-width, by layer path, bit-width and form; the least recently used go first.

    `budget` is in bytes; None means no limit. A weight larger than the whole budget is derived at each use. Threads may
    share one of these: while one derives ahead, another computes.
    """

    budget: int | None = None
    resident: int = 0
    _weights: OrderedDict[Key, Sized] = field(default_factory=OrderedDict)
    _forgotten: int = 0  # calls of `forget`
    _lock: Lock = field(default_factory=fork_safe_lock)

    def get(self, key: Key, derive: Callable[[int], Form]) -> Form:
        """Return the weight of a key, in the form that `derive` gives; it is derived now unless it is resident."""
        with self._lock:
            kept = self._weights.get(key)
            if kept is not None:
                self._weights.move_to_end(key)
                return cast(Form, kept)
            forgotten = self._forgotten
        weight = derive(key.bits)
        self._keep(key, weight, forgotten, in_force=())
        return weight

    def prefetch(self, key: Key, derive: Callable[[int], Sized], in_force: Container[Key]) -> bool:
        """Make a weight resident ahead of its use, unless room for it is taken by what is `in_force`."""
        with self._lock:
            if key in self._weights:
                self._weights.move_to_end(key)
                return True
            forgotten = self._forgotten
        return self._keep(key, derive(key.bits), forgotten, in_force)

    def forget(self, path: str) -> None:
        """Drop what was derived from this layer, because its parameters changed or moved."""
        with self._lock:
            self._forgotten += 1
            for key in [key for key in self._weights if key.path == path]:
                self._evict(key)

    def holds(self, key: Key) -> bool:
        """Return whether a weight is resident."""
        return key in self._weights

    def bytes_by_bits(self) -> dict[int, int]:
        """Return resident bytes by bit-width."""
        sizes: dict[int, int] = {}
        with self._lock:
            for key, weight in self._weights.items():
                sizes[key.bits] = sizes.get(key.bits, 0) + weight.nbytes
        return dict(sorted(sizes.items()))

    def __reduce__(self) -> tuple[type["WeightCache"], tuple[int | None]]:
        """Copy the model without its derived weights: the copy derives its own."""
        return type(self), (self.budget,)

    def _keep(self, key: Key, weight: Sized, forgotten: int, in_force: Container[Key]) -> bool:
        size = weight.nbytes
        with self._lock:
            if forgotten != self._forgotten:  # meanwhile: it may be of parameters that have changed since
                return False
            if key in self._weights:  # another thread was faster
                return True
            if self.budget is not None:
                if size > self.budget:
                    return False
                idle = [each for each in self._weights if each not in in_force]
                while self.resident + size > self.budget:
                    if not idle:
                        return False
                    self._evict(idle.pop(0))
            self._weights[key] = weight
            self.resident += size
        return True

    def _evict(self, key: Key) -> None:
        self.resident -= self._weights.pop(key).nbytes
