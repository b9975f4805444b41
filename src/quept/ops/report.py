"""A report on which kernels run on this machine, and why the others do not."""

from dataclasses import asdict, dataclass
from typing import Any

from quept.ops.cpu.extension import describe
from quept.ops.reference import OPERATORS
from quept.ops.registry import Operator, device_types


@dataclass(frozen=True)
class Choice:
    """The backend tried first for an operator on a type of device; `others` says of each of the rest why it is not."""

    operator: str
    device: str
    backends: tuple[str, ...]  # that have a kernel, in the order in which they are tried
    runs: str  # a backend, or "reference"
    others: dict[str, str]


def choices() -> list[Choice]:
    """Return the choice for every operator and type of device."""
    return [_choice(operator, device) for device in device_types() for operator in OPERATORS]


def report() -> dict[str, Any]:
    """Return what `python -m quept.ops --json` prints."""
    return {"kernels": describe(), "operators": [asdict(choice) for choice in choices()]}


def table() -> str:
    """Return the choices as a table for people."""
    rows = [("operator", "device", "backends", "runs", "why not the others")]
    for choice in choices():
        others = "; ".join(f"{name}: {why}" for name, why in choice.others.items())
        rows.append((choice.operator, choice.device, ", ".join(choice.backends) or "none", choice.runs, others))
    sizes = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", "integer_linear is made of integer_product and finish_product."])


def _choice(operator: Operator[..., Any], device: str) -> Choice:
    chosen = operator.backend_on(device)
    others = {}
    for backend, _, _ in operator.kernels:
        if not backend.enabled:
            others[backend.name] = "it is turned off"
        elif why := backend.absence(device):
            others[backend.name] = why
        elif chosen is not None and backend is not chosen:
            others[backend.name] = f"it is for what {chosen.name} does not take"
    names = tuple(backend.name for backend, _, _ in operator.kernels)
    return Choice(operator.name, device, names, "reference" if chosen is None else chosen.name, others)
