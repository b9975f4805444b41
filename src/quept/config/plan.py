"""Precisions, and plans that give each part of a model its own."""

import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StrictInt

from quept.config.base import Value
from quept.config.bits import FULL, MAX_BITS, MIN_BITS
from quept.config.patterns import check_names, is_pattern, matches
from quept.errors import InvalidInput
from quept.files import read_json, write_json


@dataclass(frozen=True)
class Precision:
    """Bit-widths of weights, activations, and keys and values: 2 to 8, `FULL`, or None where nothing is said.

    Where only the weights' bits are given, activations take those that they were calibrated with beside them.
    """

    weights: int | None = None
    activations: int | None = None
    keys_values: int | None = None

    def __post_init__(self) -> None:
        for bits in (self.weights, self.activations, self.keys_values):
            if bits is not None:
                _allowed(bits, bits)

    @classmethod
    def parse(cls, given: "int | str | Precision | None") -> Self:
        """Read `4`, `"w4a8"`, `"w4a4kv4"`, `"4kv4"`, `"kv4"` or None, all at full precision; so are 16 bits.

        Full precision of weights is their master, which in an artifact with a store has 8 bits.
        Where weights or activations are named, the other is at full precision unless it is named as well. Raises
        `InvalidInput` for anything else.
        """
        if isinstance(given, cls):
            return given
        if given is None:
            return cls(FULL, FULL, FULL)
        if isinstance(given, bool) or not isinstance(given, int | str):
            raise InvalidInput(f"precision {_shown(given)} is neither a bit-width, a plan nor None (full precision).")
        if isinstance(given, int):
            return cls(weights=_allowed(given, given))
        written = re.fullmatch(r"(?:(\d{1,3})|(?:w(\d{1,3}))?(?:a(\d{1,3}))?)(?:kv(\d{1,3}))?", given.lower(), re.ASCII)
        if written is None or not given:
            raise InvalidInput(
                f"precision {_shown(given)} cannot be read; write one bit-width (4), or those of weights, activations, "
                "and keys and values (w4a8, w4a4kv4, kv4; 16 is full precision)."
            )
        named = (None if part is None else _allowed(int(part), given) for part in written.groups())
        paired, weights, activations, keys_values = named
        if paired:
            return cls(paired, None, keys_values)
        if weights or activations:
            weights, activations = weights or FULL, activations or FULL
        return cls(weights, activations, keys_values)

    def with_keys_values(self, bits: int | None) -> Self:
        """Return the precision with these bits for keys and values, unless they are None."""
        return self if bits is None else replace(self, keys_values=_allowed(bits, bits))

    def __str__(self) -> str:
        paired = "" if self.activations is None else "w"  # a plain number leaves activations as calibrated beside it
        parts = ((paired, self.weights), ("a", self.activations), ("kv", self.keys_values))
        return "".join(f"{name}{bits}" for name, bits in parts if bits is not None)


PLAN_VERSION: Final = 1
MOST_ENTRIES: Final = 100_000  # of a plan

PlannedBits = int | str | Precision | None  # of a layer: 4, "w4a8", or full precision


@dataclass(frozen=True)
class PrecisionPlan:
    """Bit-widths for the parts of a model, by module path or pattern. A uniform bit-width is a constant plan.

    In a pattern `*` stands for anything, `?` for one character, `[12]` for one of these. Where several entries name a
    part, the last one counts.

    The entry of a linear layer is a bit-width (4: activations as they were calibrated beside it), `"w4a8"`, or None,
    full precision; that of an attention module is the bit-width of its keys and values, or None. A pattern decides on
    the parts that its bits are of: `"*": 4` leaves keys and values alone, `"*": "kv4"` the linears. Parts that are not
    named stay as they are.

    Raises `InvalidInput` for more than `MOST_ENTRIES` entries, and for more patterns than `MOST_PATTERNS`.
    """

    bits: Mapping[str, PlannedBits]

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", MappingProxyType(dict(self.bits)))
        check_names(self.bits, "The plan", MOST_ENTRIES)

    @classmethod
    def uniform(cls, paths: Iterable[str], bits: PlannedBits) -> "PrecisionPlan":
        """Return the constant plan: every path at `bits`."""
        return cls(dict.fromkeys(paths, bits))

    @classmethod
    def parse(cls, data: Any, *, origin: str) -> Self:
        """Return the plan in JSON values as `to_json` gives them, read from `origin`; raises `InvalidInput` "
        "without one."""
        return cls(_PlanFile.parse(data, origin=origin).checked(origin))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Return the plan in a JSON file; raises `InvalidInput` where it holds none."""
        return cls.parse(read_json(path, "a plan"), origin=str(path))

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary for `json.dump`: numbers where bits are of weights alone, else `"w4a8"`; None is null."""
        return _PlanFile(bits={name: _written(planned) for name, planned in self.bits.items()}).model_dump()

    def write(self, path: Path) -> None:
        """Write the plan as JSON; `read` gives it back."""
        write_json(path, self.to_json())

    def assigned(self, linears: Iterable[str], attentions: Iterable[str] = ()) -> dict[str, PlannedBits]:
        """Return what the plan gives each part, by path; parts that it does not name are left out."""
        linears, attentions = dict.fromkeys(linears), dict.fromkeys(attentions)  # in order, and quick to look in
        assigned: dict[str, PlannedBits] = {}
        for name, planned in self.bits.items():
            if not is_pattern(name):
                assigned.update({name: planned} if name in linears or name in attentions else {})
                continue
            precision = Precision.parse(planned)
            of_linears = precision.weights is not None or precision.activations is not None
            named = [*(linears if of_linears else ()), *(attentions if precision.keys_values is not None else ())]
            assigned.update({path: precision for path in named if matches(path, name)})
        return assigned

    def unmatched(self, paths: Iterable[str]) -> list[str]:
        """Return the entries that name none of `paths`, sorted."""
        paths = set(paths)
        return sorted(str(name) for name in self.bits if not _names_any(name, paths))


class _PlanFile(Value):
    """A plan as a file holds it."""

    format: Literal["quept-plan"] = "quept-plan"
    version: Literal[1] = PLAN_VERSION
    bits: Annotated[dict[str, StrictInt | str | None], Field(max_length=MOST_ENTRIES)]

    def checked(self, origin: str) -> dict[str, PlannedBits]:
        """Return the entries; raises `InvalidInput` for one that is no precision."""
        check_names(self.bits, f"{origin} is not possible: the plan", MOST_ENTRIES)
        for name, planned in self.bits.items():
            try:
                Precision.parse(planned)
            except InvalidInput as error:
                raise InvalidInput(f"{origin}, at {reprlib.repr(name)}: {error}") from None
        return dict(self.bits)


def _names_any(name: object, paths: set[str]) -> bool:
    return any(matches(path, str(name)) for path in paths) if is_pattern(name) else name in paths


def _written(planned: PlannedBits) -> int | str | None:
    if planned is None:
        return None
    text = str(Precision.parse(planned))
    return int(text) if text.isdigit() else text


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """Return the precisions written as bit-widths (4), ranges (2-8) and pairs (w4a8), separated by commas.

    Raises `InvalidInput` for anything else.
    """
    found: list[Precision] = []
    for part in text.split(","):
        part = part.strip()
        if written := re.fullmatch(r"(\d{1,9})-(\d{1,9})", part, re.ASCII):
            low, high = int(written[1]), int(written[2])
            if not MIN_BITS <= low <= high <= MAX_BITS:
                raise InvalidInput(
                    f"bits {text!r} are not possible: bit-widths go from {MIN_BITS} to {MAX_BITS}, ranges from low "
                    "to high."
                )
            found += [Precision(weights=bits) for bits in range(low, high + 1)]
        else:
            found.append(Precision.parse(part))
    return tuple(dict.fromkeys(found))


def _shown(given: object) -> str:
    """Return what was given, shortened."""
    if isinstance(given, int) and abs(given) > 10**9:  # Python does not write numbers of thousands of digits
        return "of more than nine digits"
    return reprlib.repr(given)


def _allowed(bits: int, given: object) -> int:
    if type(bits) is not int or (bits != FULL and not MIN_BITS <= bits <= MAX_BITS):
        raise InvalidInput(
            f"precision {_shown(given)} is not possible: bit-widths go from {MIN_BITS} to {MAX_BITS}; {FULL} is full "
            "precision."
        )
    return bits
