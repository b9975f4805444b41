import html
import itertools
import math
import re
import struct
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from quept.errors import InvalidInput, QueptError
from quept.plots import Curve, Point, write_plot
from quept.plots.scale import format_bytes, format_value

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
QUEPT = (4.2, 3.35, 3.15, 3.12, 3.11, 3.10, 3.10)
ROUNDING = (38.0, 4.9, 3.4, 3.2, 3.13, 3.11, 3.10)
SIZES = (250_000, 350_000, 450_000, 560_000, 670_000, 790_000, 900_000)
MISSING = (None,) * 7
HOSTILE = "</title><script>alert('1')</script> \"&amp; \x00\n\u202e $\\frac{ https://example.org"


def curve(quept=QUEPT, rounding=ROUNDING, sizes=SIZES, **changes):
    points = tuple(itertools.starmap(Point, zip(range(2, 9), quept, rounding, sizes, strict=True)))
    return replace(Curve("built-in model", "perplexity", 3.1, points, 1_800_000), **changes)


CURVES = {
    "complete": curve(),
    "hostile": curve(title=HOSTILE, metric=HOSTILE),
    "non-finite": curve((math.inf, *QUEPT[1:]), (math.nan, math.inf, *ROUNDING[2:])),
    "nothing finite": curve((math.inf,) * 7, (math.nan,) * 7, full_precision=-math.inf),
    "huge": curve((1e300, *QUEPT[1:]), (sys.float_info.max, 1e14, *ROUNDING[2:])),
    "tiny": curve((1e-300, 0.0, *QUEPT[2:])),
    "flat": curve((3.1,) * 7, (3.1,) * 7),
    "all zero": curve((0.0,) * 7, MISSING, full_precision=0.0),
    "single": Curve("one", "perplexity", 3.1, (Point(4, 3.2, 3.4, 450_000),)),
    "without baseline": curve(rounding=MISSING),
    "without sizes": curve(sizes=MISSING, full_precision_bytes=None),
    "bare": Curve("one", "perplexity", 3.1, (Point(4, 3.2, None, None),)),
}
every_curve = pytest.mark.parametrize("drawn", CURVES.values(), ids=CURVES.keys())


def page(drawn, folder):
    write_plot(drawn, folder / "plot.html")
    return (folder / "plot.html").read_text(encoding="utf-8")


def svg(text):
    (found,) = re.findall(r"<svg .*</svg>", text, flags=re.DOTALL)
    return ET.fromstring(found)


def rows(text):
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", text)
    ]


def group(root, name):
    return root.find(f".//{SVG}g[@id='{name}']")


def markers(root, key):
    """The (x, y) centres of the points of a line."""
    line = group(root, key)
    drawn = [] if line is None else line.iter(f"{SVG}use")
    return [(float(node.get("x")), float(node.get("y"))) for node in drawn]


def dashed(root):
    """The height of the line of full precision."""
    (line,) = [
        node for node in root.iter(f"{SVG}path") if "dasharray" in node.get("style", "") and node.get("clip-path")
    ]
    heights = {float(y) for y in re.findall(r"[ML] \S+ (\S+)", line.get("d"))}
    assert len(heights) == 1
    return heights.pop()


def off_scale(root):
    """The places of the marks at the top edge, and the values that are named there."""
    marks = [node.get("id") for node in root.iter(f"{SVG}g") if node.get("id", "").startswith("off-scale")]
    named = [node.text for node in root.iter(f"{SVG}text") if node.text in ("inf", "nan")]
    return [place for mark in marks for place in markers(root, mark)], named


@every_curve
def test_png_has_the_promised_size(drawn, tmp_path):
    write_plot(drawn, tmp_path / "plot.png")
    content = (tmp_path / "plot.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (1050, 675)


def test_png_leaves_pyplot_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    write_plot(curve(), tmp_path / "plot.png")


@pytest.mark.parametrize("name", ["plot.png", "plot.html"])
def test_without_matplotlib_it_is_said_what_to_install(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(QueptError, match=r"pip install 'quept\[plots\]'"):
        write_plot(curve(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@every_curve
def test_html_is_deterministic(drawn, tmp_path):
    first = page(drawn, tmp_path)
    assert page(drawn, tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == ["plot.html"]


@every_curve
def test_html_refers_to_nothing_outside(drawn, tmp_path):
    text = page(drawn, tmp_path)
    assert "default-src 'none'" in text
    assert "<script" not in text
    assert "<image" not in text
    assert not re.search(r"\b(src|@import)\s*[=(]", text)
    ids = {node.get("id") for node in svg(text).iter()}
    targets = re.findall(r'\bhref="#([^"]*)"', text) + re.findall(r"url\(#([^)]*)\)", text)
    assert targets
    assert set(targets) <= ids
    assert len(targets) == len(re.findall(r"\bhref\s*=|url\s*\(", text))
    if HOSTILE not in (drawn.title, drawn.metric):
        assert set(re.findall(r"\w+://[^\"\s]*", text)) == {SVG[1:-1], XLINK[1:-1]}


@every_curve
def test_table_holds_every_figure(drawn, tmp_path):
    head, *body = rows(page(drawn, tmp_path))
    assert head == ["bits", "quept", "rounding to nearest", "full precision", "size"]
    assert body == [
        [
            str(point.bits),
            format_value(point.value),
            "\N{EM DASH}" if point.baseline is None else format_value(point.baseline),
            format_value(drawn.full_precision),
            "\N{EM DASH}" if point.bytes is None else format_bytes(point.bytes),
        ]
        for point in drawn.points
    ]


@every_curve
def test_every_value_that_can_be_drawn_is_inside_the_drawing(drawn, tmp_path):
    root = svg(page(drawn, tmp_path))
    assert root.tag == f"{SVG}svg"
    _, _, width, height = map(float, root.get("viewBox").split())
    for line in drawn.series:
        shown = [value for _, value in line.values if math.isfinite(value) and value < 1e15]
        assert len(markers(root, line.key)) == len(shown)
        assert all(0 < x < width and 0 < y < height for x, y in markers(root, line.key))


@pytest.mark.parametrize("rounding", [ROUNDING, MISSING], ids=["log", "linear"])
def test_a_higher_value_is_higher_on_the_page(rounding, tmp_path):
    drawn = curve(rounding=rounding)
    root = svg(page(drawn, tmp_path))
    pairs = []
    for line in drawn.series:
        places = markers(root, line.key)
        assert [x for x, _ in places] == sorted({x for x, _ in places})
        pairs += [(value, y) for (_, value), (_, y) in zip(line.values, places, strict=True)]
    for (one, y_one), (other, y_other) in itertools.combinations(pairs, 2):
        assert (one > other) == (y_one < y_other)
        assert (one == other) == (y_one == y_other)
    assert dashed(root) == dict(pairs)[3.1]


def test_the_same_bits_are_at_the_same_place_in_both_lines(tmp_path):
    root = svg(page(curve(), tmp_path))
    assert [x for x, _ in markers(root, "quept")] == pytest.approx([x for x, _ in markers(root, "rounding")])


def test_points_have_tooltips(tmp_path):
    root = svg(page(curve(), tmp_path))
    first, *_ = [node.findtext(f"{SVG}title") for node in group(root, "quept").iter(f"{SVG}use")]
    assert first == "2 bits, quept: perplexity 4.200"
    first, *_ = [node.findtext(f"{SVG}title") for node in group(root, "rounding").iter(f"{SVG}use")]
    assert first == "2 bits, rounding to nearest: perplexity 38.000"


def test_text_stays_text_and_the_drawing_has_an_alternative(tmp_path):
    root = svg(page(curve(), tmp_path))
    texts = {node.text for node in root.iter(f"{SVG}text")}
    assert {"8 bits", "900 kB", "perplexity (lower is better, log scale)", "rounding to nearest"} <= texts
    assert root.get("role") == "img"
    assert root.get("aria-label").startswith("perplexity at each bit-width; lower is better.")


def test_the_drawing_has_the_colours_of_the_page(tmp_path):
    text = page(curve(), tmp_path)
    drawing = "".join(re.findall(r"<svg .*</svg>", text, flags=re.DOTALL))
    assert {"var(--quept)", "var(--rounding)", "var(--ink)", "var(--page)"} <= set(re.findall(r"var\(--\w+\)", drawing))
    assert re.findall(r"#[0-9a-f]{6}\b", drawing) == []
    for name in set(re.findall(r"var\((--\w+)\)", text)):
        assert len(re.findall(rf"{name}: #", text)) == 2, "one for light screens and one for dark ones"


def test_hostile_text_stays_text(tmp_path):
    text = page(CURVES["hostile"], tmp_path)
    assert "alert(" in text
    assert "<script" not in text
    assert text.count("</title>\n<style>") == 1
    assert svg(text).get("aria-label").startswith("</title><script>alert('1')</script>")
    assert "\x00" not in text
    assert "\u202e" not in text


def test_non_finite_values_are_marked_at_the_top_and_leave_a_gap(tmp_path):
    quept = (*QUEPT[:3], math.inf, *QUEPT[4:])
    root = svg(page(curve(quept, MISSING), tmp_path))
    ((_, y),), named = off_scale(root)
    assert named == ["inf"]
    assert y < min(y for _, y in markers(root, "quept"))
    line = next(group(root, "quept").iter(f"{SVG}path")).get("d")
    assert re.sub(r"[^ML]", "", line) == "MLLMLL"


def test_marks_of_both_lines_do_not_cover_each_other(tmp_path):
    marks, named = off_scale(svg(page(CURVES["non-finite"], tmp_path)))
    assert sorted(named) == ["inf", "inf", "nan"]
    assert len({(round(x), round(y)) for x, y in marks}) == 3


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ((4.0, 1.0), False),
        ((4.01, 1.0), True),
        ((400.0, 100.0), False),
        ((38.0, 3.1), True),
        ((100.0, 0.0), False),
        ((100.0, -1.0), False),
        ((math.inf, 3.1), False),
        ((math.nan, 3.1), False),
    ],
)
def test_log_scale_only_when_the_range_warrants_it(values, log):
    high, low = values
    drawn = Curve("t", "perplexity", low, (Point(2, high, None, None), Point(3, low, None, None)))
    assert drawn.axis.log is log


@every_curve
def test_ticks_lie_on_the_axis_and_read_differently(drawn):
    axis = drawn.axis
    places = [tick for tick, _ in axis.ticks]
    assert places == sorted(places)
    slack = 1e-9 * max(abs(axis.low), abs(axis.high))
    assert all(axis.low - slack <= place <= axis.high + slack for place in places)
    assert len({label for _, label in axis.ticks}) == len(axis.ticks)
    assert len(axis.ticks) >= 3 or drawn is CURVES["nothing finite"]


def test_points_are_put_in_order_of_bits():
    points = curve().points
    assert curve(points=points[::-1]).points == points


def test_a_curve_without_points_is_refused():
    with pytest.raises(InvalidInput, match="no points"):
        curve(points=())


@pytest.mark.parametrize("name", ["plot.html", "plot.png"])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_litter(name, tmp_path, monkeypatch):
    target = tmp_path / name
    target.write_text("old")

    def refuse(self, target):
        raise OSError("no")

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(QueptError, match="no"):
        write_plot(curve(), target)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert target.read_text() == "old"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_999, "10.0 kB"),
        (250_000, "250 kB"),
        (999_600, "1.00 MB"),
        (1_440_000, "1.44 MB"),
        (13_500_000_000, "13.5 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_sizes_read_well(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.1, "3.100"), (1234.56, "1,234.6"), (1e7, "1.00e+07"), (1e-5, "1.00e-05"), (-math.inf, "-inf")],
)
def test_values_read_well(value, text):
    assert format_value(value) == text
