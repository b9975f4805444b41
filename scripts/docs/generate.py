"""Write the pages of the documentation that follow from the code: recipe fields, the command line, Python, and support.

python scripts/docs/generate.py            write them
python scripts/docs/generate.py --check    fail if one differs from what would be written
"""

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic_core import PydanticUndefined

import quept
from quept import config, recipes
from quept.calibration import RoundingMethod, register_rounding_method
from quept.cli.app import app
from quept.config.base import Value
from quept.config.recipe import Data
from quept.models import ARCHITECTURES, TEXT_GENERATION, Architecture, Residual, Site

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NOTE = "<!-- Written by scripts/docs/generate.py from the code; edit that instead. -->\n"
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
# Public names that are not in `quept` itself.
EXTENSIONS = {each.__name__: each for each in (Architecture, Site, Residual, RoundingMethod, register_rounding_method)}
# Families of which a trained model was measured, with the section of docs/results.md.
MEASURED = {
    "llama": "[two models](results.md#beside-single-width-quantizers)",
    "vit": "[one model](results.md#vision-transformers), and the digits of the demo",
    "swin": "[one model](results.md#vision-transformers)",
    "deit": "[one model](results.md#vision-transformers)",
}


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = []
    for name, text in pages().items():
        path = DOCS / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not options.check:
                path.write_text(text, encoding="utf-8")
    if options.check and stale:
        print(f"{', '.join(stale)} differ from the code; run python scripts/docs/generate.py", file=sys.stderr)
        return 1
    return 0


def pages() -> dict[str, str]:
    """Return the text of every generated page by file name."""
    return {
        "recipe-fields.md": recipe_fields(),
        "cli.md": command_line(),
        "support.md": support(),
        "python.md": python(),
    }


def recipe_fields() -> str:
    """Return the reference of recipe fields."""
    lines = [
        NOTE,
        "# Every recipe field",
        "",
        "A recipe is a TOML file; start from a copy of a [shipped one](recipes.md). Unknown keys are refused.",
        "Settings have the defaults of the method as published; the recipes that are recommended change many of them.",
        "",
        *_table(config.Recipe, skip=set(SECTIONS)),
    ]
    for section, kind in SECTIONS.items():
        heading = f"## `[[{section}]]`" if section == "rules" else f"## `[{section}]`"
        skip = {"mixing"} if section == "reconstruction" else set()
        lines += ["", heading, "", _plain(kind.__doc__ or ""), "", *_table(kind, skip)]
    return "\n".join(lines) + "\n"


def _table(kind: type[Value], skip: set[str]) -> Iterator[str]:
    said = field_docstrings(kind)
    yield "| field | default | allowed | effect |"
    yield "|---|---|---|---|"
    for name, field in kind.model_fields.items():
        if name not in skip:
            yield f"| `{name}` | {_default(field.default)} | {_allowed(field)} | {_cell(said[name])} |"


def field_docstrings(kind: type[Value]) -> dict[str, str]:
    """Return the docstring below each field of a class of settings."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    found, name = {}, None
    for statement in definition.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and name is not None:
            found[name], name = inspect.cleandoc(str(statement.value.value)), None
        else:
            name = None
    return found


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else repr(value)}`".replace("'", '"').replace(
        "None", "none"
    )


def _allowed(field: Any) -> str:
    """Return the values that a field may have, from its annotation and its bounds."""
    text = str(field.annotation).replace("typing.", "")
    if names := re.findall(r"Literal\[([^\]]*)\]", text):
        words = ", ".join(f"`{each.strip()}`" for group in names for each in group.replace("'", '"').split(","))
        return (
            words
            + (", or a number" if "float" in text else "")
            + (", or none" if "NoneType" in text or "| None" in text else "")
        )
    bounds = {"ge": "from", "gt": "above", "le": "up to", "lt": "below"}
    said = [
        f"{word} {getattr(each, key)}"
        for each in (*field.metadata, *_inner(field.annotation))
        for key, word in bounds.items()
        if getattr(each, key, None) is not None
    ]
    kind = "bit-widths" if "tuple" in text and "Bits" not in text and "ge=2" in text else _kind(text)
    return ", ".join([kind, *dict.fromkeys(said)])


def _inner(annotation: Any) -> Iterator[Any]:
    """Yield the bounds inside an annotation such as `tuple[Bits, ...]`."""
    for each in getattr(annotation, "__args__", ()):
        for given in getattr(each, "__metadata__", ()):
            yield given
            yield from getattr(given, "metadata", ())
        yield from _inner(each)


def _kind(text: str) -> str:
    for mark, kind in (
        ("tuple[quept", "tables"),
        ("BitGroups", "a partition"),
        ("tuple", "a list of numbers"),
        ("bool", "true or false"),
        ("float", "a number"),
        ("int", "a whole number"),
        ("str", "text"),
    ):
        if mark in text:
            return kind
    return "a table"


def command_line() -> str:
    """Return the reference of the command line."""
    group = typer.main.get_command(app)
    lines = [
        NOTE,
        "# Command line",
        "",
        "Every command has `--help`. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
        "",
    ]
    commands = group.commands
    lines += ["| command | |", "|---|---|"]
    lines += [
        f"| [`quept {name}`](#quept-{name}) | {_plain(each.help).splitlines()[0]} |" for name, each in commands.items()
    ]
    for name, command in commands.items():
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        usage = " ".join([f"quept {name}", *(_metavar(each) for each in arguments), "[OPTIONS]"])
        lines += ["", f"## quept {name}", "", "```text", usage, "```", "", _plain(command.help), ""]
        lines += ["| option | default | |", "|---|---|---|"]
        for each in command.params:
            names = ", ".join(f"`{option}`" for option in (*each.opts, *each.secondary_opts))
            if each.param_type_name == "argument":
                names = f"`{_metavar(each)}`"
            lines.append(f"| {names} | {_given(each)} | {_cell(each.help or '')} |")
    return "\n".join(lines) + "\n"


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _given(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.default in (None, False, (), []):
        return ""
    return f"`{parameter.default}`"


def python() -> str:
    """Return the reference of the public names, which the site fills with their docstrings."""
    lines = [NOTE, "# Python", "", "All public names are in `quept`, and are imported on first use."]
    for name in (*quept.__all__, *EXTENSIONS):
        found = EXTENSIONS.get(name) or getattr(quept, name)
        lines += ["", f"::: {found.__module__}.{found.__qualname__}"]
    return "\n".join(lines) + "\n"


def support() -> str:
    """Return the support matrix."""
    language = [each for each in ARCHITECTURES.values() if each.task is TEXT_GENERATION]
    vision = [each for each in ARCHITECTURES.values() if each.task is not TEXT_GENERATION]
    lines = [
        NOTE,
        "# Support matrix",
        "",
        "Families are transformers' `model_type`; [another](adding-an-architecture.md) is about twenty lines of data.",
        "Every family is tested by calibrating, loading, switching and saving small random models on a CPU",
        "(`tests/models`), the transforms by the equality of full-precision outputs (`tests/transforms`). The last",
        "column says of which families trained models were measured. Residual streams are rotated in the weights where",
        "the configuration allows it (OPT with norms last does not).",
        "",
        "## Language models",
        "",
        f"Recipes: {_recipes(vision=False)}.",
        "",
        "| family | weights | weights and activations | key-value cache | residual rotation | measured |",
        "|---|---|---|---|---|---|",
    ]
    for each in language:
        rotated = "in the weights" if each.residual is not None else "as it runs"
        lines.append(f"| `{each.model_type}` | yes | yes | yes | {rotated} | {measured(each)} |")
    lines += [
        "",
        "## Image classifiers",
        "",
        f"Recipes: {_recipes(vision=True)}.",
        "",
        "| family | weights | weights and activations | attention's products | measured |",
        "|---|---|---|---|---|",
    ]
    for each in vision:
        lines.append(f"| `{each.model_type}` | yes | yes | yes | {measured(each)} |")
    devices = (Path(__file__).parent / "devices.md").read_text(encoding="utf-8")
    return "\n".join([*lines, "", devices])


def measured(architecture: Architecture) -> str:
    """Return which trained models of a family were measured."""
    return MEASURED.get(architecture.model_type, "small random models")


def _recipes(vision: bool) -> str:
    named = [name for name in recipes.names() if ("vision" in name) == vision and not name.startswith("demo")]
    return ", ".join(f"`{name}`" for name in named)


def _plain(text: str) -> str:
    """Return a docstring or a help text as Markdown."""
    return re.sub(r"\[bold\](.*?)\[/\]", r"`\1`", inspect.cleandoc(text))


def _cell(text: str) -> str:
    return " ".join(_plain(text).split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
