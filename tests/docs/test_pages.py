"""The documentation agrees with the code: generated pages, links, paths, messages, fields of an architecture."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from families import FAMILIES, VISION

import quept
from quept.config import Mixing, Rule
from quept.config.base import Value
from quept.models import ARCHITECTURES, Architecture, Residual, Site

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
# Files of the project, as sentences name them: from its root, from the package, or by the last part alone.
FILE = re.compile(
    r"`([\w./-]*\w\.(?:py|toml|md|cpp|h|txt|yml|json)|(?:src|tests|docs|scripts|benchmarks|native)/[\w./-]+)`"
)
# Files of a model's, an artifact's or a user's own.
ELSEWHERE = (
    "calibration.json",
    "config.json",
    "quept.json",
    "generation_config.json",
    "preprocessor_config.json",
    "plan.json",
    "table.json",
)


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    documented = re.findall(r"^::: (\S+)$", text, re.MULTILINE)  # an anchor each, made from its docstring
    return {*documented, *(re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings)}


def is_file_of_the_project(name):
    if (ROOT / name).exists() or (ROOT / "src" / "quept" / name).exists():
        return True
    return "/" not in name and any(ROOT.glob(f"[!.]*/**/{name}"))


def test_generated_pages_are_what_the_code_says():
    command = [sys.executable, "scripts/docs/generate.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_every_named_file_is_there(page):
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(CODE.sub("", text)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{page.name} links to {target}"
    for name in FILE.findall(text):
        assert name in ELSEWHERE or is_file_of_the_project(name), f"{page.name} names {name}"


def test_every_setting_of_a_recipe_has_a_row():
    reference = (ROOT / "docs" / "recipe-fields.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `\[+([\w.]+)\]+`$(.*?)(?=^## )", reference, re.MULTILINE | re.DOTALL))
    kinds = {name: type(value) for name, value in quept.load_recipe("best") if isinstance(value, Value)}
    kinds = {**kinds, "reconstruction.mixing": Mixing, "rules": Rule}
    assert {"groups", *sections} == {"reconstruction.mixing", "rules", *kinds}
    for section, text in sections.items():
        rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
        assert rows == [name for name in kinds[section].model_fields if name != "mixing"]


def test_the_support_matrix_has_every_family_and_each_is_tested():
    matrix = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(\w+)` \| (?:\[measured\]|tested|runs)", matrix, re.MULTILINE)
    assert shown == list(ARCHITECTURES)
    assert {*FAMILIES, *(family for family, _ in VISION.values())} == set(ARCHITECTURES)


@pytest.mark.parametrize("kind", [Architecture, Site, Residual])
def test_every_field_of_an_architecture_has_a_row(kind):
    guide = (ROOT / "docs" / "adding-an-architecture.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(kind):
        assert f"| `{field.name}` |" in guide


def test_messages_that_are_explained_are_messages_of_the_code():
    source = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    # Literals that are split over lines, in one piece.
    source = re.sub(r'"\s*\n?\s*f?"', "", source)
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?`(?: \.\.\. `.*?`)*) \|", page, re.MULTILINE)
    assert len(rows) > 8
    for part in (part for row in rows for part in re.findall(r"`(.*?)`", row)):
        assert part in source, part


def test_the_glossary_is_in_order_and_says_each_term_once():
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = [row.lower() for row in re.findall(r"^\| ([^|]+?) \|", page, re.MULTILINE)[2:]]
    assert terms == sorted(set(terms))
