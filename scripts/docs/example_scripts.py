"""The page of examples: the scripts in `examples/`, with what they show."""

import ast
from pathlib import Path

from markdown import first_sentence, table

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ORDER = ("language_model", "vision_transformer", "plan", "key_value_cache", "save_and_load", "custom_architecture")


def page() -> list[str]:
    """Return the lines of the page."""
    sources = {name: (EXAMPLES / f"{name}.py").read_text(encoding="utf-8") for name in ORDER}
    said = {name: first_sentence(ast.get_docstring(ast.parse(source)) or "") for name, source in sources.items()}
    lines = [
        "# Examples",
        "",
        "Each is a script of at most 60 lines that runs on the built-in models in seconds, and that the tests run.",
        "",
        *table(
            ("script", "shows"),
            [(f"[`examples/{name}.py`](#{name})", each) for name, each in said.items()],
        ),
    ]
    for name, source in sources.items():
        lines += ["", f"## {name}", "", "```python", source.rstrip(), "```"]
    return lines
