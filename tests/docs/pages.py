"""The pages of the documentation, and the blocks of code in them."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page in a language."""
    return [text for name, text in FENCED.findall(page.read_text(encoding="utf-8")) if name == language]


def lines(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield every command line of a page's shell blocks, in words, with the number of its block.

    A line that ends in a backslash goes on; words in quotes are one, comments are left out.
    """
    for number, block in enumerate(blocks(page, "bash")):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s)#.*", "", line)
            words = re.sub(r"""(["'])(.*?)\1""", lambda match: match[2].replace(" ", "_"), command).split()
            if words:
                yield number, words


def inline(page: Path) -> Iterator[str]:
    """Yield the code within a page's sentences and tables."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    yield from re.findall(r"`([^`\n]+)`", text)
