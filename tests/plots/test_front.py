"""The front and the heat map, as pages and as images."""

import math

import pytest

from quept.errors import InvalidInput
from quept.plots import Front, FrontPoint, HeatMap, write_front, write_heat_map

PLANS = (FrontPoint("3.5 bits", 3500, 12.0), FrontPoint("2.5 bits", 2500, 20.0))
UNIFORM = (FrontPoint("uniform 2", 2000, math.inf), FrontPoint("uniform <4>", 4000, 11.0))
FRONT = Front("a & b", "perplexity", 10.0, PLANS, UNIFORM)
HEAT = HeatMap("a & b", "KL", {"up": {"2": 1e-1, "4": 1e-5}, "<down>": {"2": 0.0}})


def test_points_are_in_order_of_size_and_each_has_its_place(tmp_path):
    assert [point.bytes for point in FRONT.plans] == [2500, 3500]
    write_front(FRONT, tmp_path / "front.html")
    page = (tmp_path / "front.html").read_text()
    assert page.count("<circle") == 3, "infinity has no place"
    assert "uniform &lt;4&gt;" in page
    assert "a &amp; b" in page
    assert "2.50 kB" in page
    assert "inf" in page, "but stands in the table"
    write_front(FRONT, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "front.html").read_bytes()


@pytest.mark.parametrize("draw", [lambda path: write_front(FRONT, path), lambda path: write_heat_map(HEAT, path)])
def test_images_are_drawn(tmp_path, draw):
    draw(tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_shades_follow_the_logarithm_and_what_is_missing_has_none(tmp_path):
    assert HEAT.widths == ["2", "4"]
    assert HEAT.shade(1e-1) == 1
    assert HEAT.shade(1e-3) == pytest.approx(0.5)
    assert HEAT.shade(1e-5) == HEAT.shade(0.0) == 0
    assert HEAT.shade(None) is None
    write_heat_map(HEAT, tmp_path / "heat.html")
    page = (tmp_path / "heat.html").read_text()
    assert "&lt;down&gt;" in page
    assert "&mdash;" in page
    assert "rgb(253 231 37)" in page


def test_nothing_to_draw_is_told():
    with pytest.raises(InvalidInput, match="one plan at least"):
        Front("a", "b", 1.0, (), UNIFORM)
    with pytest.raises(InvalidInput, match="one part at least"):
        HeatMap("a", "b", {"up": {}})
