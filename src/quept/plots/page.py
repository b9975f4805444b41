"""Web pages that need nothing else: the frame, the style and the elements that all drawings share."""

import html
from pathlib import Path

from quept.files import replacing
from quept.plots.curve import printable

# Okabe-Ito colours, the lighter ones on a dark page. The markers tell the lines apart without colour too, and
# the hollow square shows around the disc where the two lines meet.
STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #222222; --faint: #595959; --rule: #e3e3e3;
  --quept: #0072b2; --rounding: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --page: #16181c; --ink: #e8e8e8; --faint: #a8adb5;
  --rule: #33373d; --quept: #56b4e9; --rounding: #e69f00; } }
body { margin: 0 auto; max-width: 56rem; padding: 1.5rem 1rem 3rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.4rem; line-height: 1.25; overflow-wrap: anywhere; }
p { margin: 0.25rem 0 1rem; color: var(--faint); }
.scroll { overflow-x: auto; }
svg { display: block; width: 100%; min-width: 34rem; height: auto; font-size: 13px; }
svg text { fill: var(--ink); }
svg text.size, svg text.metric { fill: var(--faint); }
.grid { stroke: var(--rule); }
.base { stroke: var(--faint); }
.full { stroke: var(--faint); stroke-width: 1.5; stroke-dasharray: 7 5; }
.line { fill: none; stroke-width: 2.5; stroke-linejoin: round; }
.line.quept { stroke: var(--quept); }
.line.rounding { stroke: var(--rounding); }
.point.quept { fill: var(--quept); }
.point.rounding { fill: var(--page); stroke: var(--rounding); stroke-width: 1.75; }
svg .off-scale.quept { fill: var(--quept); }
svg .off-scale.rounding { fill: var(--rounding); }
table { margin-top: 1.5rem; width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { padding-bottom: 0.5rem; text-align: left; color: var(--faint); }
th, td { padding: 0.35rem 0.75rem; border-bottom: 1px solid var(--rule); text-align: right; }
th { font-weight: 600; }
thead th { border-bottom-color: var(--faint); }
th:first-child { text-align: left; }
"""


def write_page(path: Path, title: str, summary: str, *sections: str, style: str = "") -> None:
    """Write a self-contained page to `path`, replacing it; equal content gives equal bytes. Sections are markup."""
    head = (
        '<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}{style}</style>"
    )
    body = "\n".join([tag("h1", text(title)), tag("p", text(summary)), *sections])
    page = f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'
    with replacing(path) as temporary:
        temporary.write_bytes(page.encode())


def text(content: str) -> str:
    """Text as markup."""
    return html.escape(printable(content))


def tag(name: str, *children: str, **attributes: object) -> str:
    """Return an element; attribute values are escaped here, children are markup already."""
    named = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    opening = "".join(f' {key}="{text(_number(value))}"' for key, value in named)
    return f"<{name}{opening}>{''.join(children)}</{name}>"


def _number(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def scrolling(label: str, content: str) -> str:
    """A box that scrolls on narrow screens."""
    # Narrow screens scroll inside this box; the keyboard can scroll only what it can focus.
    return tag("div", "\n", content, "\n", class_="scroll", role="region", aria_label=label, tabindex=0)


def row(cell: str, first: str, *others: str, scope: str = "row") -> str:
    """A table row; cells are markup."""
    named = {"scope": scope} if cell == "th" else {}
    cells = (tag(cell, other, **named) for other in others)
    return tag("tr", tag("th", first, scope=scope), *cells)
