"""The reference of the command line."""

from typing import Any

import typer
from markdown import first_sentence, plain, table

from quept.cli.app import app


def page() -> list[str]:
    """Return the lines of the page."""
    commands = typer.main.get_command(app).commands
    lines = [
        "# Command line",
        "",
        "Every command has `--help`. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
        "",
        *table(
            ("command", "purpose"),
            [(f"[`quept {name}`](#quept-{name})", first_sentence(plain(each.help))) for name, each in commands.items()],
        ),
    ]
    for name, command in commands.items():
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        usage = " ".join([f"quept {name}", *map(_metavar, arguments), "[OPTIONS]"])
        rows = [(_name(each), _default(each), each.help or "") for each in command.params]
        lines += ["", f"## quept {name}", "", "```text", usage, "```", "", plain(command.help), ""]
        lines += table(("option", "default", "meaning"), rows)
    return lines


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_metavar(parameter)}`"
    unit = f" {parameter.metavar}" if parameter.metavar else ""
    again = ", repeatable" if parameter.multiple else ""
    return ", ".join(f"`{option}{unit}`" for option in (*parameter.opts, *parameter.secondary_opts)) + again


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if getattr(parameter, "is_flag", False) or parameter.default in (None, (), []):
        return ""
    return f"`{parameter.default}`"
