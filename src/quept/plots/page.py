"""Web pages that need nothing else: the frame, the style and tables."""

import html
from collections.abc import Iterable, Sequence

from quept.plots.scale import printable

# On a dark page the lines have the lighter colours of the Okabe-Ito palette. Drawings were laid out with the first font
# that is named for them; the second is as wide.
_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #222222; --faint: #595959; --rule: #e3e3e3;
  --quept: #0072b2; --rounding: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --page: #16181c; --ink: #e8e8e8; --faint: #a8adb5;
  --rule: #33373d; --quept: #56b4e9; --rounding: #e69f00; } }
body { margin: 0 auto; max-width: 56rem; padding: 1.5rem 1rem 3rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.4rem; line-height: 1.25; overflow-wrap: anywhere; }
p { margin: 0.25rem 0 1rem; color: var(--faint); }
.scroll { overflow-x: auto; }
svg { display: block; width: 100%; min-width: 34rem; height: auto; }
svg text { font-family: 'DejaVu Sans', Verdana, sans-serif !important; }
table { margin-top: 1.5rem; width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { padding-bottom: 0.5rem; text-align: left; color: var(--faint); }
th, td { padding: 0.35rem 0.75rem; border-bottom: 1px solid var(--rule); text-align: right; }
th { font-weight: 600; }
thead th { border-bottom-color: var(--faint); }
th:first-child { text-align: left; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(title: str, summary: str, *sections: str) -> str:
    """Return a self-contained page; `title` and `summary` are text, `sections` are markup."""
    head = (
        '<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>"
    )
    body = "\n".join([f"<h1>{escape(title)}</h1>", f"<p>{escape(summary)}</p>", *sections])
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def scrolling(label: str, content: str) -> str:
    """Return a box around markup that scrolls on narrow screens; the keyboard reaches it, since it takes the focus."""
    return f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">\n{content}\n</div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Return a table of texts; the first cell of a row is its heading."""
    above = f"<caption>{escape(caption)}</caption>\n" if caption else ""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "\n".join(_row(row) for row in rows)
    return f"<table>\n{above}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def escape(text: str) -> str:
    """Return text as markup that shows it on one line."""
    return html.escape(printable(text))


def _row(cells: Sequence[str]) -> str:
    first, *others = cells
    return f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in others)}</tr>'
