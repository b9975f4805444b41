"""What the generated pages share: tables, and docstrings as Markdown."""

import ast
import inspect
import re
from collections.abc import Iterable


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a table; a `|` in a cell is escaped, and a cell is one line."""
    names = list(head)
    return [
        f"| {' | '.join(names)} |".replace("|  |", "| |"),
        "|" + "---|" * len(names),
        *(f"| {' | '.join(map(cell, row))} |".replace("|  |", "| |").replace("|  |", "| |") for row in rows),
    ]


def cell(text: str) -> str:
    """Return a text as one line of a table."""
    return " ".join(plain(text).split()).replace("|", "\\|")


def plain(text: str) -> str:
    """Return a docstring or a help text as Markdown, with links to the pages that it names."""
    text = re.sub(r"\[bold\](.*?)\[/\]", r"`\1`", inspect.cleandoc(text))
    return re.sub(r"(?<![(\w/])docs/([\w-]+)\.md", r"[\1](\1.md)", text)


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring: its first paragraph up to the first full stop or colon."""
    paragraph = " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())
    return re.match(r".*?[.:](?= |$)|.*", paragraph)[0].rstrip(":.") + "."


def field_docstrings(kind: type) -> dict[str, str]:
    """Return the docstring below each field of a class."""
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
