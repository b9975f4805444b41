"""The precisions to evaluate: bit-widths and plans under the names that results and progress show."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from quept.config import Precision, PrecisionPlan


class Candidate(NamedTuple):
    """A precision to evaluate: `name` in the results, `label` in progress reports."""

    name: str
    label: str
    precision: Precision | PrecisionPlan


def candidates(
    precisions: Sequence[int | str | Precision], plans: Mapping[str, PrecisionPlan] | None = None
) -> list[Candidate]:
    """Return the precisions, then the plans by name; raises `InvalidInput` for a precision that cannot be read."""
    parsed = [Precision.parse(precision) for precision in precisions]
    found = [Candidate(str(each), _in_words(each), each) for each in parsed]
    return found + [Candidate(name, name, plan) for name, plan in (plans or {}).items()]


def _in_words(precision: Precision) -> str:
    """Return `4 bits` where only weights are named, else the short form, `w4a8`."""
    name = str(precision)
    return f"{name} bits" if name.isdigit() else name
