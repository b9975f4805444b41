"""Tables as files: what is read back, and what is refused."""

import json

import pytest

from quept.errors import InvalidInput
from quept.search.table import Origin, SensitivityTable, rank_correlation

ORIGIN = Origin(metric="kl", model="a" * 64, data="text", data_sha256="b" * 64, rows=72)
PARTS = {"a": {"2": 0.5, "4": 1 / 3}, "b": {"2": 1e-9, "w16a4": 0.25}, "attention": {"kv4": 0.125}}
PAIRS = ("", "-0.1", "0.2 0.3")


def table(**changes):
    return SensitivityTable(**{"origin": ORIGIN, "parts": PARTS, "pairs": PAIRS, **changes})


def test_a_table_reads_back_as_it_was_written(tmp_path):
    table().write(tmp_path / "t.json")
    read = SensitivityTable.read(tmp_path / "t.json")
    assert read == table()
    assert read.columns == [("a", "2"), ("a", "4"), ("b", "2")]
    products = read.products()
    assert products[1, 0] == products[0, 1] == pytest.approx(-0.1 * (0.5 / 3) ** 0.5)
    assert products[2, 1] == products[1, 2] == pytest.approx(0.3 * (1e-9 / 3) ** 0.5)
    assert not products.diagonal().any()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "quept"}, "format"),
        ({"version": 2}, "version"),
        ({"colour": "red"}, "colour"),
        ({"parts": {"a": {"2": None}}}, "parts"),
        ({"parts": {"a": {"9": 0.1}}}, "widths go from 2 to 8"),
        ({"parts": {"a": {"w4": 0.1}}}, "is written w4a16"),
        *(
            ({"parts": {"a": {"2": wrong}}}, "parts")
            for wrong in (True, "0.5", 1e308, float("inf"), float("-inf"), float("nan"), -0.1, 10**400)
        ),
        (
            {"parts": {"a": {"4": 1e7}}},
            "the sensitivity of a at 4 is 10000000.0; it is a divergence",
        ),
        ({"parts": {str(i): {} for i in range(100_001)}}, "at most 100000 items"),
        ({"parts": {str(i): {"4": 0.1} for i in range(10_001)}}, "have 10001 bit-widths together; at most 10000"),
        ({"parts": {"a" * 2000: {"4": True}}}, "parts"),
        ({"origin": {**ORIGIN.model_dump(), "rows": True}}, "origin.rows"),
        ({"origin": {**ORIGIN.model_dump(), "keys_values": ["4"]}}, "origin.keys_values"),
        ({"pairs": ["", "0.1"]}, "2 rows; the linears' bit-widths are 3"),
        ({"pairs": ["", "0.1", "0.1"]}, "row 2 of pairs must hold 2 numbers from -1 to 1"),
        ({"pairs": ["", "1.5", "0.1 0.2"]}, "row 1 of pairs"),
        ({"pairs": ["", "nan", "0.1 0.2"]}, "row 1 of pairs"),
        ({"pairs": ["", "much", "0.1 0.2"]}, "much"),
        ({"origin": {**ORIGIN.model_dump(), "model": "abc"}}, "origin.model"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, change, told):
    path = tmp_path / "t.json"
    path.write_text(json.dumps({**table().model_dump(mode="json"), **change}))
    with pytest.raises(InvalidInput, match=told) as caught:
        SensitivityTable.read(path)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_what_rounding_leaves_of_a_divergence_of_zero_is_read():
    assert table(parts={"a": {"8": -1e-12}}, pairs=()).products().tolist() == [[0.0]]
    assert table(parts={"a": {"8": 0}}, pairs=()).parts == {"a": {"8": 0.0}}


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"format": "a", "format": "b"}', "NaN", '{"parts": {"a": {"2": NaN}}}']
)
def test_what_is_no_json_is_refused(tmp_path, text):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"t\.json"):
        SensitivityTable.read(path)
    with pytest.raises(InvalidInput, match="cannot be read as a sensitivity table"):
        SensitivityTable.read(tmp_path / "none.json")


def test_a_table_of_another_model_is_refused():
    table().check_model("a" * 64, "t.json")
    with pytest.raises(InvalidInput, match=r"t\.json was measured on another model"):
        table().check_model("b" * 64, "t.json")


def test_rank_correlation_is_spearmans():
    def of(*numbers):
        return table(parts={"a": dict(zip("23456", numbers, strict=False))}, pairs=())

    assert rank_correlation(of(1, 2, 3, 4), of(10, 20, 30, 1000)) == pytest.approx(1)
    assert rank_correlation(of(1, 2, 3, 4), of(4, 3, 2, 1)) == pytest.approx(-1)
    # 1 - 6 sum(d^2) / (n (n^2 - 1)) with ranks 1 2 3 4 5 and 2 1 4 3 5
    assert rank_correlation(of(1, 2, 3, 4, 5), of(2, 1, 4, 3, 5)) == pytest.approx(1 - 6 * 4 / (5 * 24))
    # ties share the mean of their ranks: 1.5 1.5 3 against 1 2 3
    assert rank_correlation(of(7, 7, 9), of(1, 2, 3)) == pytest.approx(1.5 / (1.5 * 2) ** 0.5)
    with pytest.raises(InvalidInput, match="share too little"):
        rank_correlation(of(1, 1), of(1, 2))
