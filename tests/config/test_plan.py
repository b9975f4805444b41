"""How precisions are written and read."""

import json

import pytest

from quept.config import FULL, Precision, PrecisionPlan, parse_precisions, patterns
from quept.errors import InvalidInput


@pytest.mark.parametrize(
    ("given", "meant", "written"),
    [
        (4, Precision(4), "4"),
        ("4", Precision(4), "4"),
        ("w4a8", Precision(4, 8), "w4a8"),
        ("W4A4KV4", Precision(4, 4, 4), "w4a4kv4"),
        ("w2a16", Precision(2, FULL), "w2a16"),
        ("w2", Precision(2, FULL), "w2a16"),
        ("a8", Precision(FULL, 8), "w16a8"),
        ("kv3", Precision(keys_values=3), "kv3"),
        ("4kv3", Precision(4, None, 3), "4kv3"),
        ("w4kv2", Precision(4, FULL, 2), "w4a16kv2"),
        (None, Precision(FULL, FULL, FULL), "w16a16kv16"),
        (Precision(3, 8), Precision(3, 8), "w3a8"),
    ],
)
def test_a_precision_means_what_it_says_and_reads_back(given, meant, written):
    assert Precision.parse(given) == meant
    assert str(meant) == written
    assert Precision.parse(written) == meant


@pytest.mark.parametrize("given", ["", "w", "wa", "w4x8", "a8w4", "w4 a8", "w4.5", "four", "٤", "w4a8kv", "-4", "w-4"])
def test_what_cannot_be_read_is_refused(given):
    with pytest.raises(InvalidInput, match=r"cannot be read; write one bit-width \(4\)"):
        Precision.parse(given)


@pytest.mark.parametrize("given", [1, 9, 0, "9", "w1a8", "w4a9", "kv12", "w4a4kv1", "999"])
def test_bit_widths_that_do_not_exist_are_refused(given):
    with pytest.raises(InvalidInput, match="widths go from 2 to 8; 16 is full precision"):
        Precision.parse(given)


def test_lists_hold_bit_widths_ranges_and_pairs_each_once():
    assert parse_precisions("2-4, w4a8,4,w4kv4") == (
        Precision(2),
        Precision(3),
        Precision(4),
        Precision(4, 8),
        Precision(4, FULL, 4),
    )
    for wrong in ("", "4-2", "1-4", "2,,4", "w2-w4"):
        with pytest.raises(InvalidInput):
            parse_precisions(wrong)


def test_keys_and_values_are_set_unless_nothing_is_said():
    assert Precision(4).with_keys_values(3) == Precision(4, None, 3)
    assert Precision(4).with_keys_values(None) == Precision(4)
    with pytest.raises(InvalidInput):
        Precision(4).with_keys_values(1)


LINEARS = ("blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down")
ATTENTIONS = ("blocks.0.attention", "blocks.1.attention")


def assigned(bits):
    return {path: Precision.parse(each) for path, each in PrecisionPlan(bits).assigned(LINEARS, ATTENTIONS).items()}


def test_patterns_name_parts_and_the_last_entry_counts():
    plan = {"*": 4, "blocks.1.*": 3, "blocks.?.up": 2, "blocks.1.up": 8}
    expected = {"blocks.0.up": 2, "blocks.0.down": 4, "blocks.1.up": 8, "blocks.1.down": 3}
    assert assigned(plan) == {path: Precision(bits) for path, bits in expected.items()}
    assert assigned({"blocks.1.up": 8, "*": 4})["blocks.1.up"] == Precision(4)
    assert assigned({"blocks.[1-9].down": 2}).keys() == {"blocks.1.down"}


def test_a_pattern_decides_on_the_kinds_that_its_bit_width_is_of():
    assert assigned({"*": 4}).keys() == set(LINEARS)
    assert assigned({"*": "kv4"}).keys() == set(ATTENTIONS)
    assert assigned({"*": "w4a4kv4"}).keys() == {*LINEARS, *ATTENTIONS}
    assert assigned({"*": None}).keys() == {*LINEARS, *ATTENTIONS}
    assert assigned({"blocks.0.attention": 4}).keys() == {"blocks.0.attention"}


def test_entries_that_name_nothing_are_told():
    plan = PrecisionPlan({"*": 4, "blocks.2.*": 4, "blocks.0.up": 2, "up": 4})
    assert plan.unmatched([*LINEARS, *ATTENTIONS]) == ["blocks.2.*", "up"]


def test_a_plan_reads_back_as_it_was_written(tmp_path):
    plan = PrecisionPlan({"blocks.*": 4, "blocks.0.up": "w4a8", "blocks.1.up": None, "*": "kv4"})
    plan.write(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["bits"] == dict(plan.bits)
    read = PrecisionPlan.read(tmp_path / "plan.json")
    assert list(read.bits.items()) == list(plan.bits.items()), "order counts"
    assert PrecisionPlan({"a": Precision(4), "b": "w16a16"}).to_json()["bits"] == {"a": 4, "b": "w16a16"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not valid JSON"),
        ("[]", "is not valid"),
        ('{"bits": {"a": 4}, "bit": 3}', "bit: "),
        ('{"bits": {"a": 4}, "version": 2}', "version"),
        ('{"bits": {"a": 9}}', "at 'a': precision 9 is not possible"),
        ('{"bits": {"a": "four"}}', "at 'a': precision 'four' cannot be read"),
        ('{"bits": {"a": 4, "a": 3}}', "an object holds 'a' twice"),
        ('{"bits": {"a": [4]}}', "bits"),
        ('{"bits": {"a": true}}', "bits"),
        ('{"bits": {"a": 4.0}}', "bits"),
        ('{"bits": {"a": 4.5}}', "bits"),
        ('{"bits": {"a": 1e308}}', "bits"),
        ('{"bits": {"a": NaN}}', "bits"),
        ('{"bits": {"a": 99999999999999999999}}', "at 'a': precision of more than nine digits is not possible"),
        ("{}", "bits"),
    ],
)
def test_what_is_no_plan_is_refused_in_one_paragraph(tmp_path, text, told):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InvalidInput, match=told) as caught:
        PrecisionPlan.read(tmp_path / "plan.json")
    assert "plan.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_a_plan_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InvalidInput, match="cannot be read as a plan"):
        PrecisionPlan.read(tmp_path / "none.json")


def test_plans_of_any_size_are_refused_in_one_paragraph(tmp_path):
    def plan(*entries):
        return f'{{"bits": {{{",".join(entries)}}}}}'

    path = tmp_path / "plan.json"
    for text, told in (
        (plan(f'"{"a" * 1001}": 4'), "a name of 1001 characters, which begins 'aaa"),
        (plan(*(f'"*{i}": 4' for i in range(4097))), "4097 patterns; at most 4096 are allowed"),
        (plan(*(f'"{i}": []' for i in range(90_000))), "and 179992 more"),
        (plan(*(f'"{i}": 4' for i in range(100_001))), "at most 100000 items"),
        (plan(*('"a": 4, "b": 4' for _ in range(50_000))), "an object holds 'a' twice"),
        ("[" * 100_000, "not valid JSON"),
        ('{"bits": ' + '{"a":' * 500 + "4" + "}" * 501, "bits"),
    ):
        path.write_text(text)
        with pytest.raises(InvalidInput, match=told) as caught:
            PrecisionPlan.read(path)
        assert "plan.json" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 3000


def test_a_file_that_never_ends_is_refused():
    with pytest.raises(InvalidInput, match=r"/dev/zero is not a plan: it is larger than the \d+ bytes"):
        PrecisionPlan.read("/dev/zero")


@pytest.mark.parametrize("given", [True, False, 4.0, "4", float("nan"), [4], 9, "digits"])
def test_a_precision_is_of_whole_numbers(given):
    given = 10**5000 if given == "digits" else given  # of which Python makes no text
    with pytest.raises(InvalidInput, match="is not possible: bit-widths go from 2 to 8"):
        Precision(given)
    if given != "4":
        with pytest.raises(InvalidInput):
            Precision.parse(given)


def test_the_entries_of_a_plan_are_limited():
    PrecisionPlan.uniform(map(str, range(100_000)), 4)
    with pytest.raises(InvalidInput, match="The plan has 100001 entries; at most 100000 are allowed"):
        PrecisionPlan.uniform(map(str, range(100_001)), 4)
    with pytest.raises(InvalidInput, match="The plan has 5000 patterns; at most 4096 are allowed"):
        PrecisionPlan.uniform(map("*{}".format, range(5000)), 4)
    with pytest.raises(InvalidInput, match="The plan has a name of 2000 characters"):
        PrecisionPlan({"a" * 2000: 4})


def test_a_pattern_is_compiled_once_for_all_paths():
    """More patterns than the standard library remembers, which would compile each for every path."""
    patterns._matcher.cache_clear()
    plan = PrecisionPlan.uniform(map("*.{}.*".format, range(2000)), 4)
    paths = [f"blocks.{i}.up" for i in range(50)]
    assert len(plan.unmatched(paths)) == 1950
    assert len(plan.assigned(paths)) == 50
    assert patterns._matcher.cache_info().misses == 2000
