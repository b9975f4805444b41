"""Tables, JSON and error messages, as all commands write them."""

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quept.errors import InvalidInput, QueptError
from quept.files import checked_path, replacing

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Interrupted(QueptError):
    """The user pressed Ctrl-C."""

    exit_code = 130


def fail(message: str, code: int) -> int:
    """Report a failure on standard error, and return the exit code."""
    text = Text.assemble(("error:", "bold red"), " ", clean(message))
    Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty()).print(text)
    return code


def clean(text: str) -> str:
    """Return text from files and arguments without anything that could steer a terminal."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def check_target(option: str, path: Path | None) -> None:
    """Raise `InvalidInput` unless a file could be written at `path`; called before the work whose result goes there."""
    if path is None or str(path) == "-":
        return
    checked_path(path, option)
    if not path.name or path.is_dir() or not path.parent.is_dir():
        raise InvalidInput(f"{option} {str(path)!r} is not a file in an existing directory; choose another.")


def check_plot(option: str, path: Path | None) -> None:
    """Raise `InvalidInput` unless a plot could be written at `path`, `QueptError` unless it can be drawn."""
    if path is not None and path.suffix not in (".png", ".html"):
        raise InvalidInput(f"The plot {path} must end in .png or .html.")
    check_target(option, path)
    if path is not None:
        from quept.plots import require_matplotlib

        require_matplotlib()


def out(quiet: bool, json_file: Path | None = None) -> Console:
    """Return the console for results; it is silent where JSON goes to standard output."""
    return Console(quiet=quiet or str(json_file) == "-", highlight=False, soft_wrap=True, markup=False)


def write_json(path: Path | None, data: Any) -> None:
    """Write `data` where `--json` says; numbers that JSON does not know (inf, nan) become null."""
    if path is None:
        return
    text = json.dumps(_plain(data), indent=2) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def show_table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a title and a table; the first column is left-aligned, the others right-aligned."""
    result = Table()
    for position, column in enumerate(columns):
        result.add_column(column, justify="left" if position == 0 else "right")
    for row in rows:
        result.add_row(*(Text(clean(cell)) for cell in row))
    console.print(f"\n{clean(title)}", style="bold")
    console.print(result)


def size(count: int) -> str:
    """Return bytes for people, in decimal units."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"


def figure(value: float | None) -> str:
    """Return a perplexity for people."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 1000 else f"{value:.4g}"


def parse_size(text: str | None) -> int | None:
    """Return the bytes of `2.5GB`, `900 MB` or a plain number; decimal units."""
    if text is None:
        return None
    written = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", text.strip().upper(), re.ASCII)
    if written is None or not float(written[1]):
        raise InvalidInput(f"The size {text!r} cannot be read; write bytes, or 900MB, or 2.5GB.")
    return int(float(written[1]) * _UNITS[written[2].rstrip("B")])
