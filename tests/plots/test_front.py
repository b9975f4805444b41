"""The front and the heat map, as pages and as images."""

import math
import re

import pytest

from quept.errors import InvalidInput
from quept.plots import Front, FrontPoint, HeatMap, write_plot

PLANS = (FrontPoint("3.5 bits", 3500, 12.0), FrontPoint("2.5 bits", 2500, 20.0))
UNIFORM = (FrontPoint("uniform 2", 2000, math.inf), FrontPoint("uniform <4> $_$", 4000, 11.0))
FRONT = Front("a & b", "perplexity", 10.0, PLANS, UNIFORM)
HEAT = HeatMap("a & b", "KL", {"up $_$": {"2": 1e-1, "4": 1e-5}, "<down>": {"2": 0.0}})


def drawing_and_table(plot, path):
    write_plot(plot, path)
    page = path.read_text()
    assert "a &amp; b" in page
    write_plot(plot, path.with_name("again.html"))
    assert path.with_name("again.html").read_bytes() == path.read_bytes()
    return re.search(r"<svg .*</svg>", page, re.DOTALL)[0], re.search(r"<table>.*</table>", page, re.DOTALL)[0]


def test_points_are_in_order_of_size_and_each_has_its_place(tmp_path):
    assert [point.bytes for point in FRONT.plans] == [2500, 3500]
    drawing, table = drawing_and_table(FRONT, tmp_path / "front.html")
    assert len(re.findall(r"<title>.*?: perplexity", drawing)) == 3, "infinity has no place"
    assert "<title>2.5 bits, 2.50 kB: perplexity 20.000</title>" in drawing
    assert ">uniform &lt;4&gt; $_$</text>" in drawing
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == [
        "uniform 2",
        "2.5 bits",
        "3.5 bits",
        "uniform &lt;4&gt; $_$",
    ]
    assert "<td>inf</td>" in table


@pytest.mark.parametrize("plot", [FRONT, HEAT], ids=["front", "heat map"])
def test_images_are_drawn(tmp_path, plot):
    write_plot(plot, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_cells_have_their_numbers_and_what_is_missing_has_none(tmp_path):
    drawing, table = drawing_and_table(HEAT, tmp_path / "heat.html")
    assert "<image" not in drawing, "the page's own policy would not show it"
    assert re.findall(r">(\d\.\de[-+]\d\d)</text>", drawing)[:3] == ["1.0e-01", "1.0e-05", "0.0e+00"]
    assert ">&lt;down&gt;</text>" in drawing
    assert ">up $_$</text>" in drawing
    assert "<td>0.0e+00</td><td>\N{EM DASH}</td>" in table


def test_a_heat_map_without_a_positive_number_is_drawn(tmp_path):
    drawing, _ = drawing_and_table(HeatMap("a & b", "KL", {"up": {"2": 0.0}}), tmp_path / "heat.html")
    assert "0.0e+00" in drawing


def test_shades_follow_the_logarithm():
    assert HEAT.precisions == ["2", "4"]
    assert HEAT.shade(1e-1) == 1
    assert HEAT.shade(1e-3) == pytest.approx(0.5)
    assert HEAT.shade(1e-5) == HEAT.shade(0.0) == 0
    assert HEAT.shade(None) is None


def test_nothing_to_draw_is_told():
    with pytest.raises(InvalidInput, match="one plan at least"):
        Front("a", "b", 1.0, (), UNIFORM)
    with pytest.raises(InvalidInput, match="one part at least"):
        HeatMap("a", "b", {"up": {}})
