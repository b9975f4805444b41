"""How precisions are written and read."""

import pytest

from quept.errors import InvalidInput
from quept.plan import Widths, parse_precisions
from quept.widths import FULL


@pytest.mark.parametrize(
    ("given", "meant", "written"),
    [
        (4, Widths(4), "4"),
        ("4", Widths(4), "4"),
        ("w4a8", Widths(4, 8), "w4a8"),
        ("W4A4KV4", Widths(4, 4, 4), "w4a4kv4"),
        ("w2a16", Widths(2, FULL), "w2a16"),
        ("w2", Widths(2, FULL), "w2a16"),
        ("a8", Widths(FULL, 8), "w16a8"),
        ("kv3", Widths(keys_values=3), "kv3"),
        ("4kv3", Widths(4, None, 3), "4kv3"),
        ("w4kv2", Widths(4, FULL, 2), "w4a16kv2"),
        (None, Widths(FULL, FULL, FULL), "w16a16kv16"),
        (Widths(3, 8), Widths(3, 8), "w3a8"),
    ],
)
def test_a_precision_means_what_it_says_and_reads_back(given, meant, written):
    assert Widths.parse(given) == meant
    assert str(meant) == written
    assert Widths.parse(written) == meant


@pytest.mark.parametrize("given", ["", "w", "wa", "w4x8", "a8w4", "w4 a8", "w4.5", "four", "٤", "w4a8kv", "-4", "w-4"])
def test_what_cannot_be_read_is_refused(given):
    with pytest.raises(InvalidInput, match=r"cannot be read; write a width \(4\)"):
        Widths.parse(given)


@pytest.mark.parametrize("given", [1, 9, 0, "9", "w1a8", "w4a9", "kv12", "w4a4kv1", "999"])
def test_widths_that_do_not_exist_are_refused(given):
    with pytest.raises(InvalidInput, match="widths go from 2 to 8; 16 is full precision"):
        Widths.parse(given)


def test_lists_hold_widths_ranges_and_pairs_each_once():
    assert parse_precisions("2-4, w4a8,4,w4kv4") == (
        Widths(2),
        Widths(3),
        Widths(4),
        Widths(4, 8),
        Widths(4, FULL, 4),
    )
    for wrong in ("", "4-2", "1-4", "2,,4", "w2-w4"):
        with pytest.raises(InvalidInput):
            parse_precisions(wrong)


def test_keys_and_values_are_set_unless_nothing_is_said():
    assert Widths(4).with_keys_values(3) == Widths(4, None, 3)
    assert Widths(4).with_keys_values(None) == Widths(4)
    with pytest.raises(InvalidInput):
        Widths(4).with_keys_values(1)
