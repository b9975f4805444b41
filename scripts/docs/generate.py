"""Write the pages of the documentation that follow from the code.

python scripts/docs/generate.py            write them
python scripts/docs/generate.py --check    fail if one differs from what would be written
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import command_line
import example_scripts
import python_reference
import recipe_fields
import support_matrix

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTE = "<!-- Written by scripts/docs/generate.py from the code; edit that instead. -->\n"
PAGES: dict[str, Callable[[], list[str]]] = {
    "recipe-fields.md": recipe_fields.page,
    "cli.md": command_line.page,
    "python.md": python_reference.page,
    "support.md": support_matrix.page,
    "examples.md": example_scripts.page,
}


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = []
    for name, page in PAGES.items():
        path, text = DOCS / name, "\n".join([NOTE, *page()]) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not options.check:
                path.write_text(text, encoding="utf-8")
    if options.check and stale:
        print(f"{', '.join(stale)} differ from the code; run python scripts/docs/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
