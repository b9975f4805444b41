"""The reference of recipe fields: default, allowed values, effect and source, and what shipped recipes set."""

import re
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from markdown import field_docstrings, plain, table
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from quept import config, recipes
from quept.config.base import Value
from quept.config.recipe import Data

SECTIONS: dict[str, type[Value]] = {
    "granularity": config.Granularity,
    "adapter": config.Adapter,
    "store": config.Store,
    "reconstruction": config.Reconstruction,
    "reconstruction.mixing": config.Mixing,
    "merging": config.Merging,
    "smoothing": config.Smoothing,
    "rotation": config.Rotation,
    "reparameterization": config.Reparameterization,
    "activations": config.Activations,
    "data": Data,
    "rules": config.Rule,
}
# A file has `bits`, of which and of `groups` a recipe makes one partition.
BITS = ("`bits`", "required", 'text: `"4"`, `"2-8"`, `"2,4,8"`', "Bit set: the bit-widths to calibrate.", "")
IN_FILES = {"groups": ("the paper's", "a list of lists, such as `[[7, 8], [5, 6], [3, 4], [2]]`")}
HEAD = ("field", "default", "allowed", "effect", "source")


def page() -> list[str]:
    """Return the lines of the page."""
    lines = [
        "# Every recipe field",
        "",
        "A recipe is a TOML file; start from a copy of a [shipped one](recipes.md). Unknown keys are refused. A field",
        "that is left out has its default, which is that of the method as published. The recommended recipes change",
        "[many of them](#shipped-recipes). A field whose default is none cannot be set back to it: leave it out.",
        "",
        *table(HEAD, [BITS, *_rows(config.Recipe, skip={*SECTIONS})]),
    ]
    for section, kind in SECTIONS.items():
        heading = f"## `[[{section}]]`" if section == "rules" else f"## `[{section}]`"
        lines += ["", heading, "", plain(kind.__doc__ or ""), "", *table(HEAD, _rows(kind, skip={"mixing"}))]
    return [*lines, "", *_shipped()]


def _rows(kind: type[Value], skip: set[str]) -> Iterator[tuple[str, ...]]:
    said = field_docstrings(kind)
    for name, field in kind.model_fields.items():
        if name in skip:
            continue
        effect, _, source = " ".join(said[name].split()).partition("Source: ")
        default, values = IN_FILES.get(name) or (written(field.default), allowed(field))
        yield f"`{name}`", default, values, effect, source.rstrip(".")


def written(value: Any) -> str:
    """Return a value as a TOML file has it."""
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return re.sub(r"e-0?(\d)", r"e-\1", f"{value:g}") if isinstance(value, float) else str(value)


def allowed(field: FieldInfo) -> str:
    """Return the values that a field may have, in words."""
    return _values(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)


def _values(annotation: Any) -> str:
    """Return the values of a type in words: those of a union, of literals, of lists and of bounded numbers."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return "; ".join(_values(each) for each in inner if each is not NoneType)
    if origin is Literal:
        return ", ".join(f"`{_toml(each)}`" for each in inner)
    if origin is tuple:
        return f"list: {_values(inner[0])}"
    if origin is Annotated:
        bounds = [bound for each in inner[1:] for bound in getattr(each, "metadata", [each])]
        return _bounded(inner[0], {key: getattr(each, key) for each in bounds for key in _KEYS if hasattr(each, key)})
    return _KINDS[annotation]


_KEYS = ("ge", "gt", "le", "lt")
_KINDS = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}


def _bounded(kind: type, bounds: dict[str, Any]) -> str:
    if {"ge", "le"} <= bounds.keys():
        return f"{'' if kind is int else 'number, '}{bounds['ge']:g} to {bounds['le']:g}"
    words = {"ge": "from {:g}", "gt": "above {:g}", "le": "up to {:g}", "lt": "below {:g}"}
    return ", ".join([_KINDS[kind], *(words[key].format(value) for key, value in bounds.items())])


def _shipped() -> list[str]:
    """Return the table of what each shipped recipe sets that is not a default."""
    named = {name: recipes.load_recipe(name) for name in recipes.names() if not name.startswith("demo")}
    settings = {name: dict(_flat("", recipe)) for name, recipe in named.items()}
    defaults = dict(_flat("", config.Recipe(name="-", groups=config.BitGroups.partition((2,)))))
    fields = [field for field in defaults if field not in ("name", "rules")]
    rows = [
        [f"`{field}`", *("" if each[field] == defaults[field] else written(each[field]) for each in settings.values())]
        for field in fields
    ]
    return [
        "## Shipped recipes",
        "",
        "Where a recipe has the default of a field, its cell is empty.",
        "",
        *table(["field", *(f"`{name}`" for name in named)], [row for row in rows if any(row[1:])]),
    ]


def _flat(prefix: str, value: Value) -> Iterator[tuple[str, Any]]:
    """Yield each field of a recipe by its dotted path."""
    for name, each in value:
        if isinstance(each, config.BitGroups):
            yield f"{prefix}{name}", each.groups
        elif isinstance(each, Value):
            yield from _flat(f"{prefix}{name}.", each)
        else:
            yield f"{prefix}{name}", each
