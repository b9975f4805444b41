"""Which width each linear layer runs at."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class PrecisionPlan:
    """A width for every linear layer, by module path; `None` is full precision. A uniform width is a constant plan."""

    bits: Mapping[str, int | None]

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", MappingProxyType(dict(self.bits)))

    @classmethod
    def uniform(cls, paths: Iterable[str], bits: int | None) -> "PrecisionPlan":
        """The constant plan: every path at `bits`."""
        return cls(dict.fromkeys(paths, bits))
