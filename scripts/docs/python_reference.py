"""The reference of Python, which the site fills with docstrings."""

from typing import Any

from markdown import first_sentence, table

import quept
from quept.calibration import RoundingMethod, register_rounding_method
from quept.commands import PlanOptions, Workload
from quept.evaluation.judges import DataOptions
from quept.generation import cache_arguments
from quept.models import Architecture, Features, Residual, Site, Values
from quept.search import SensitivityTable

# Public names outside `quept` itself, by the package that they are imported from.
OTHERS: dict[str, tuple[Any, ...]] = {
    "quept.models": (Architecture, Site, Features, Values, Residual),
    "quept.calibration": (RoundingMethod, register_rounding_method),
    "quept.commands": (PlanOptions, Workload),
    "quept.evaluation.judges": (DataOptions,),
    "quept.generation": (cache_arguments,),
    "quept.search": (SensitivityTable,),
}


def page() -> list[str]:
    """Return the lines of the page."""
    packages = {"quept": tuple(getattr(quept, name) for name in quept.__all__), **OTHERS}
    lines = [
        "# Python",
        "",
        "Public names are in `quept`, and imported on first use. What extends them is in the packages below it.",
    ]
    for package, objects in packages.items():
        rows = [(f"[`{each.__name__}`](#{_path(each)})", first_sentence(each.__doc__ or "")) for each in objects]
        lines += ["", f"## {package}", "", *table(("name", "purpose"), rows)]
        for each in objects:
            lines += ["", f"::: {_path(each)}"]
    return lines


def _path(found: Any) -> str:
    return f"{found.__module__}.{found.__qualname__}"
