"""Benchmarks and scripts name what the package has: nothing else runs all of them."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path for folder in ("benchmarks", "examples", "scripts") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_all_that_is_imported_from_the_package_exists(script):
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in (each.name for each in node.names if each.name.split(".")[0] == "quept"):
                importlib.import_module(name)
        elif isinstance(node, ast.ImportFrom) and not node.level and str(node.module).split(".")[0] == "quept":
            module = importlib.import_module(str(node.module))
            for each in node.names:
                if not hasattr(module, each.name):
                    importlib.import_module(f"{node.module}.{each.name}")
