import reprlib
from itertools import chain, combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from quept.config import Adapter, BitGroups, Granularity, Merging, Recipe, parse_bits, patterns
from quept.errors import InvalidInput
from quept.recipes import load_recipe, names

SUBSETS = list(chain.from_iterable(combinations(range(2, 9), size) for size in range(1, 8)))
MINIMAL = 'name = "mine"\nbits = "2-8"\n'


def refused(make, *named):
    """The message of the `InvalidInput` that `make` raises: one paragraph that holds every word of `named`."""
    with pytest.raises(InvalidInput) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    for word in named:
        assert word in message, message
    return message


def groups(*given_groups):
    return BitGroups.parse({"groups": given_groups}, origin="the groups")


def recipe(**changes):
    return Recipe.parse({"name": "mine", "bits": "2-8", **changes}, origin="the recipe")


# Bit sets


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("4", (4,)),
        ("2-8", (2, 3, 4, 5, 6, 7, 8)),
        ("2,4,8", (2, 4, 8)),
        ("8, 4 ,2", (2, 4, 8)),
        ("2-4,8", (2, 3, 4, 8)),
        ("3-5,4-6", (3, 4, 5, 6)),
        ("5-5", (5,)),
        (" 2-3 ", (2, 3)),
        ("4,4", (4,)),
    ],
)
def test_bit_widths_ranges_and_lists_are_read_ascending_and_without_repeats(text, bits):
    assert parse_bits(text) == bits


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ",", "4,", ",4", "2--4", "-4", "4-", "2-4-6", "four", "4.0", "4 5", "2;4", "+4", "0x4", "1e1"),
        *("\u0664", "\u00b2", "4\n5", "9" * 5000, "2-" + "9" * 5000),
    ],
    ids=reprlib.repr,
)
def test_what_is_no_bit_set_is_refused_with_what_may_be_written(text):
    refused(lambda: parse_bits(text), "bits", "cannot be read", "2-8")


@pytest.mark.parametrize("text", ["0", "1", "9", "16", "1-4", "2-9", "8-2", "2,9", "999999999"])
def test_bit_widths_outside_2_to_8_and_ranges_downwards_are_refused(text):
    refused(lambda: parse_bits(text), repr(text), "from 2 to 8")


@given(st.text(max_size=12))
@settings(deadline=None, max_examples=200)
def test_any_text_is_either_a_bit_set_or_refused(text):
    try:
        bits = parse_bits(text)
    except InvalidInput:
        refused(lambda: parse_bits(text))
    else:
        assert bits == tuple(sorted(set(bits)))
        assert set(bits) <= set(range(2, 9))
        assert bits


# Bit groups


def test_the_papers_bit_sets_are_split_into_the_papers_groups():
    assert BitGroups.partition(range(2, 9)).groups == ((7, 8), (5, 6), (3, 4), (2,))
    assert BitGroups.partition(range(4, 9)).groups == ((7, 8), (5, 6), (4,))


@pytest.mark.parametrize("bits", SUBSETS, ids=str)
def test_every_bit_set_is_partitioned_high_to_low_with_its_lowest_bit_width_alone(bits):
    made = BitGroups.partition(bits)
    assert made.bits == bits
    assert sorted(chain(*made.groups)) == list(bits)
    assert made.groups[-1] == (bits[0],)
    assert len(made) == 1 + len(bits) // 2
    for high, low in pairwise(made.groups):
        assert min(high) > max(low)
    for position, group in enumerate(made.groups):
        assert all(made.index(width) == position for width in group)
    for absent in set(range(10)) - set(bits):
        refused(lambda absent=absent: made.index(absent), str(absent), str(list(bits)))


def test_groups_may_be_written_in_any_order():
    assert groups([2], [8, 7], [4, 3], [5, 6]).groups == ((7, 8), (5, 6), (3, 4), (2,))
    assert groups([8, 4], [2]).groups == ((4, 8), (2,))


@pytest.mark.parametrize(
    ("given_groups", "words"),
    [
        ([[7, 8], [7, 6]], ("overlap", "[7]")),
        ([[4, 4]], ("overlap", "[4]")),
        ([[8, 5], [7, 6]], ("interleave",)),
        ([[8, 4], [6]], ("interleave",)),
        ([[9, 8]], ("[9]", "from 2 to 8")),
        ([[1]], ("[1]", "from 2 to 8")),
        ([[True]], ("valid integer", "True")),
        ([], ("must not be empty",)),
        ([[8], []], ("must not be empty",)),
        ([["a"]], ("groups.0.0", "'a'")),
        ([8, 7], ("groups.0",)),
        ("78", ("groups",)),
        (None, ("groups",)),
    ],
)
def test_groups_that_are_no_partition_are_refused_in_one_paragraph(given_groups, words):
    refused(lambda: BitGroups.parse({"groups": given_groups}, origin="the groups"), "the groups", *words)


@given(st.lists(st.lists(st.integers(0, 10), max_size=4), max_size=5))
@settings(deadline=None, max_examples=200)
def test_any_groups_are_either_a_partition_or_refused(drawn):
    try:
        made = groups(*drawn)
    except InvalidInput:
        refused(lambda: groups(*drawn))
    else:
        assert sorted(chain(*drawn)) == list(made.bits)
        assert {frozenset(group) for group in made.groups} == {frozenset(group) for group in drawn}


@pytest.mark.parametrize(
    ("given_groups", "words"),
    [
        ([[7, 8], [5, 6], [3, 4]], ("do not cover", "missing [2]")),
        ([[7, 8], [5, 6], [2]], ("missing [3, 4]",)),
        ({"groups": [[2]]}, ("groups",)),
        (3, ("groups",)),
        ("x", ("groups",)),
    ],
)
def test_a_recipes_groups_must_cover_its_bit_set(given_groups, words):
    refused(lambda: recipe(groups=given_groups), "the recipe", *words)


def test_groups_with_bit_widths_outside_the_bit_set_are_refused():
    refused(lambda: recipe(bits="2-4", groups=[[8], [3, 4], [2]]), "not asked for [8]")


def test_a_recipes_own_groups_are_kept():
    assert recipe(groups=[[2], [3], [4, 5, 6, 7, 8]]).groups.groups == ((4, 5, 6, 7, 8), (3,), (2,))
    assert recipe(groups=groups([2, 3], range(4, 9))).groups.groups == ((4, 5, 6, 7, 8), (2, 3))
    assert recipe().groups == BitGroups.partition(range(2, 9))


# Granularity, adapter, merging


def test_only_grouped_bit_widths_share_scales_within_groups_never_beyond_the_row():
    granularity = Granularity(group_size=128, grouped_bits=(2, 3))
    assert [granularity.inputs_per_scale(bits, 4096) for bits in (2, 3, 4)] == [128, 128, 4096]
    assert granularity.inputs_per_scale(2, 100) == 100


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rank", [1, 16])
def test_adapter_slices_are_nested_disjoint_or_equal_as_their_kind_says(count, rank):
    groups = BitGroups(groups=[(8 - position,) for position in range(count)])

    def columns(kind):
        adapter = Adapter(kind=kind, rank=rank)
        total = range(adapter.total_rank(groups))
        return [set(total[adapter.columns(8 - position, groups)]) for position in range(count)], set(total)

    cascade, everything = columns("cascade")
    assert [len(part) for part in cascade] == [rank * (group + 1) for group in range(count)]
    assert all(high < low for high, low in pairwise(cascade))
    assert cascade[-1] == everything == set(range(rank * count))

    independent, everything = columns("independent")
    assert all(len(part) == rank for part in independent)
    assert set.union(*independent) == everything
    assert sum(map(len, independent)) == len(everything)

    shared, everything = columns("shared")
    assert all(part == everything for part in shared)

    assert columns("none") == ([set()] * count, set())


def test_the_highest_group_owns_the_first_columns():
    groups = BitGroups.partition([2, 4, 5, 7, 8])
    assert Adapter(rank=4).columns(7, groups) == slice(0, 4)
    assert Adapter(kind="independent", rank=4).columns(8, groups) == slice(0, 4)


@pytest.mark.parametrize("kind", ["cascade", "independent", "shared"])
def test_bit_widths_without_an_adapter_own_no_columns(kind):
    groups = BitGroups(groups=[[7, 8], [6], [5], [2]])
    adapter = Adapter(kind=kind, rank=4, bits=(5, 8))
    assert adapter.total_rank(groups) == 8
    assert [adapter.columns(bits, groups) == slice(0, 0) for bits in (8, 7, 6, 5, 2)] == [
        False,
        True,
        True,
        False,
        True,
    ]
    assert adapter.columns(5, groups).stop == 8


@pytest.mark.parametrize("count", range(1, 8))
def test_default_merging_weights_are_the_papers_and_sum_to_one(count):
    weights = Merging().weights_for(count)
    assert len(weights) == count
    assert sum(weights) == pytest.approx(1)
    assert weights == ((0.3, 0.3, 0.4) if count == 3 else (1 / count,) * count)


def test_merging_weights_of_ones_own_are_used_as_they_are():
    assert Merging(weights=(0.7, 0.3)).weights_for(2) == (0.7, 0.3)


# Recipes as values


def test_settings_are_frozen():
    made = recipe()
    with pytest.raises(ValidationError, match="frozen"):
        made.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        made.adapter.rank = 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": "9"}, ("bits", "'9'")),
        ({"bits": 4}, ("groups",)),
        ({"name": ""}, ("name",)),
        ({"name": 3}, ("name", "3")),
        ({"unknown": 1}, ("unknown",)),
        ({"line\nbreak": 1}, ("line break",)),
        ({"adapter": {"rank": 0}}, ("adapter.rank", "0")),
        ({"adapter": {"rank": "many"}}, ("adapter.rank", "many")),
        ({"adapter": {"kind": "lora"}}, ("adapter.kind", "cascade", "lora")),
        ({"adapter": {"entry": "bias"}}, ("adapter.entry", "rounding", "bias")),
        ({"adapter": 3}, ("adapter", "3")),
        ({"granularity": {"group_size": 0}}, ("granularity.group_size",)),
        ({"reconstruction": {"loss": "huber"}}, ("reconstruction.loss", "mae", "huber")),
        ({"reconstruction": {"epochs": -1}}, ("reconstruction.epochs",)),
        ({"reconstruction": {"epochs": 1.5}}, ("reconstruction.epochs", "1.5")),
        ({"reconstruction": {"batch_size": 0}}, ("reconstruction.batch_size",)),
        ({"reconstruction": {"adapter_learning_rate": 0}}, ("reconstruction.adapter_learning_rate",)),
        ({"reconstruction": {"clipping_learning_rate": -1}}, ("reconstruction.clipping_learning_rate",)),
        ({"reconstruction": {"final_learning_rate": 2}}, ("reconstruction.final_learning_rate",)),
        ({"merging": {"kept": 1.1}}, ("merging.kept", "1.1")),
        ({"merging": {"kept": -0.1}}, ("merging.kept",)),
        ({"merging": {"kept": float("nan")}}, ("merging.kept", "nan")),
        ({"merging": {"strategy": "best"}}, ("merging.strategy", "selective", "best")),
        ({"merging": {"weights": [0.5, 0.5]}}, ("merging.weights", "4 non-negative")),
        ({"merging": {"weights": [0.5, 0.5, 0.5, 0.5]}}, ("merging.weights", "sum to 1")),
        ({"merging": {"weights": [1.5, -0.5, 0, 0]}}, ("merging.weights", "non-negative")),
        ({"merging": {"weights": [float("nan")] * 4}}, ("merging.weights", "nan")),
        ({"merging": {"strategy": "single-width"}}, ("merging.single_width", "None")),
        ({"merging": {"strategy": "single-width", "single_width": 9}}, ("merging.single_width", "9")),
        ({"smoothing": {"grid": 0}}, ("smoothing.grid",)),
        ({"data": {"samples": 0}}, ("data.samples",)),
        ({"data": {"sequence_length": 1}}, ("data.sequence_length",)),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name_in_one_paragraph(changes, words):
    refused(lambda: recipe(**changes), "the recipe is not valid", *words)


def test_all_wrong_settings_are_named_at_once():
    refused(lambda: recipe(adapter={"rank": 0}, data={"samples": 0}), "adapter.rank", "data.samples")


def test_a_wrong_setting_is_shown_shortened():
    message = refused(lambda: recipe(adapter=["x" * 100_000] * 1000), "adapter")
    assert len(message) < 1000


def test_updating_a_recipe_checks_it_again():
    made = recipe()
    assert made.updated(name="other").name == "other"
    assert made.updated(name="other").adapter == made.adapter
    refused(lambda: made.updated(merging=Merging(weights=(1.0,))), "Recipe", "merging.weights")


def test_with_bits_keeps_the_groups_and_gives_new_bit_widths_one_of_their_own():
    own = recipe(
        groups=[[6, 7, 8], [4, 5], [2]],
        bits="2,4-8",
        merging={"weights": [0.6, 0.2, 0.2]},
        adapter={"rank": 3},
        reconstruction={"train_every": [4, 2, 1]},
    )
    other = own.with_bits([8, 4, 4, 3, 7])
    assert other.groups.groups == ((7, 8), (4,), (3,))
    assert other.reconstruction.train_every == (4, 2, 1)
    assert other.merging.weights == ()
    assert other.adapter == own.adapter
    assert own.with_bits([4, 5, 8]).reconstruction.train_every == (2, 1)
    assert own.with_bits([8, 7, 6, 5, 4, 2, 2]) is own


def test_a_set_of_which_nothing_would_train_is_trained_all_the_same():
    own = recipe(groups=[[8], [7], [2, 3, 4, 5, 6]], reconstruction={"train_every": [2, 0, 1]})
    assert own.with_bits([7]).reconstruction.train_every == ()
    assert own.with_bits([7, 8]).reconstruction.train_every == (1, 0)


@pytest.mark.parametrize(
    ("train_every", "given"), [((1,), "[1]"), ((0, 0, 0, 0), "[0, 0, 0, 0]"), ((-1, 1, 1, 1), "given: -1")]
)
def test_a_cadence_has_one_number_per_group_and_trains_something(train_every, given):
    refused(lambda: recipe(reconstruction={"train_every": train_every}), "train_every", given)


def test_a_share_of_the_text_needs_predictions_to_share():
    refused(lambda: recipe(reconstruction={"label_weight": 0.1}), "label_weight", "last_block_loss = 'kl'")
    refused(lambda: recipe(reconstruction={"label_weight": 1, "last_block_loss": "kl"}), "label_weight", "given: 1")
    assert recipe(reconstruction={"label_weight": 0.1, "last_block_loss": "kl"}).reconstruction.label_weight == 0.1


@pytest.mark.parametrize("entry", ["scale", "rounding"])
def test_learned_rounding_and_an_adapter_that_rounds_exclude_each_other(entry):
    refused(lambda: recipe(learned_rounding=[2], adapter={"entry": entry}), "learned_rounding", entry)
    assert recipe(learned_rounding=[2], adapter={"entry": entry, "kind": "none"}).learned_rounding == (2,)


def test_only_bit_widths_of_the_set_get_planes():
    assert recipe(bits="3-6", groups=None, learned_rounding=[2, 3, 4]).weight_spec.learned_rounding == (3, 4)


@pytest.mark.parametrize("kind", ["shared", "independent", "none"])
def test_only_a_cascade_can_be_isolated(kind):
    refused(lambda: recipe(adapter={"kind": kind, "isolated": True}), "isolated", kind)


@pytest.mark.parametrize("bits", [[], [1], [9], [2, 16]])
def test_with_bits_refuses_impossible_sets(bits):
    refused(lambda: recipe().with_bits(bits))


def test_with_bits_refuses_a_set_without_the_bit_width_that_merging_needs():
    single = recipe(merging={"strategy": "single-width", "single_width": 8})
    assert single.with_bits([2, 8]).merging.single_width == 8
    refused(lambda: single.with_bits([2, 4]), "merging.single_width is 8")


def test_a_recipe_survives_being_written_and_read():
    made = recipe(groups=[[4, 5, 6, 7, 8], [2, 3]], merging={"weights": [0.6, 0.4]})
    assert Recipe.parse(made.model_dump(mode="json"), origin="the copy") == made


def test_the_weight_spec_holds_what_a_layer_must_know():
    made = recipe(adapter={"rank": 3}, granularity={"group_size": 32})
    spec = made.weight_spec
    assert (spec.groups, spec.granularity, spec.adapter) == (made.groups, made.granularity, made.adapter)


# Recipe files


@pytest.mark.parametrize("name", names())
def test_every_shipped_recipe_loads_under_its_name(name):
    assert load_recipe(name).name == name


def test_the_paper_recipe_holds_the_published_values():
    paper = load_recipe("paper")
    assert paper.groups.groups == ((7, 8), (5, 6), (3, 4), (2,))
    assert (paper.granularity.group_size, paper.granularity.grouped_bits) == (128, (2,))
    assert (paper.adapter.kind, paper.adapter.entry, paper.adapter.rank) == ("cascade", "weight", 16)
    training = paper.reconstruction
    assert (training.loss, training.epochs, training.batch_size) == ("mae", 15, 2)
    assert (training.adapter_learning_rate, training.clipping_learning_rate) == (7e-4, 2e-2)
    assert training.final_learning_rate == 1 / 100
    assert (paper.merging.strategy, paper.merging.kept) == ("selective", 0.5)
    assert paper.merging.weights_for(4) == (0.25, 0.25, 0.25, 0.25)
    assert (paper.data.samples, paper.data.sequence_length) == (128, 2048)
    assert paper.smoothing.enabled


def test_the_paper_recipe_is_also_what_a_recipe_without_settings_means():
    paper = load_recipe("paper")
    assert Recipe.parse({"name": "paper", "bits": "2-8"}, origin="the defaults") == paper


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (MINIMAL + "ranks = 3\n", ("ranks",)),
        (MINIMAL + "[adapter]\nranks = 3\n", ("adapter.ranks",)),
        (MINIMAL + '[adapter]\nrank = "x"\n', ("adapter.rank", "'x'")),
        (MINIMAL + "[data]\nsamples = [1]\n", ("data.samples",)),
        (MINIMAL + 'groups = "all"\n', ("groups", "'all'")),
        (MINIMAL + "groups = [[7, 8]]\n", ("do not cover", "missing [2, 3, 4, 5, 6]")),
        (MINIMAL + "[groups]\ngroups = [[2]]\n", ("groups",)),
        (MINIMAL + "[merging]\nweights = [nan, nan, nan, nan]\n", ("merging.weights",)),
        (MINIMAL + '"a\\nb" = 1\n', ("a b",)),
        ('bits = "2-8"\n', ("name",)),
        ('name = "mine"\n', ("bits", "2-8")),
        ('name = "mine"\nbits = [2, 8]\n', ("bits",)),
        ('name = "mine"\nbits = "2-9"\n', ("bits", "'2-9'")),
        ("", ("bits",)),
        ("name = \n", ("TOML", "line 1")),
        ('name = "a"\nname = "b"\n', ("TOML",)),
        ('{"name": "mine"}', ("TOML",)),
        ("a = " + "[" * 3000 + "]" * 3000, ("TOML",)),
        ("a = " + "9" * 5000, ("TOML",)),
    ],
    ids=reprlib.repr,
)
def test_a_wrong_recipe_file_is_refused_with_its_name_and_the_key(tmp_path, content, words):
    path = tmp_path / "mine.toml"
    path.write_text(content)
    refused(lambda: load_recipe(path), str(path), *words)


def test_a_recipe_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes('name = "für"\n'.encode("latin-1"))
    refused(lambda: load_recipe(path), str(path), "UTF-8")


@pytest.mark.parametrize("name", ["papers", "nowhere/mine.toml", "", "x" * 300, "a\0b", 'name = "mine"\nbits = "2"'])
def test_a_recipe_that_does_not_exist_is_refused_with_those_that_do(name):
    refused(lambda: load_recipe(name), *names())


def test_a_directory_is_no_recipe(tmp_path):
    refused(lambda: load_recipe(tmp_path), tmp_path.name, *names())


def test_a_recipe_file_is_read_by_text_or_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nbits = "4-8"\n[adapter]\nrank = 3\n')
    made = load_recipe(str(path))
    assert made == load_recipe(path)
    assert (made.name, made.bits, made.adapter.rank) == ("mine", (4, 5, 6, 7, 8), 3)


def activations_recipe(**changes):
    return load_recipe("weight-activation").updated(**changes)


@pytest.mark.parametrize("name", ["weight-activation", "weight-activation-best"])
def test_recipes_of_weights_and_activations_pair_equal_widths(name):
    made = load_recipe(name)
    assert made.bits == made.activations.bits == (4, 5, 6, 7, 8)
    assert made.rotation.enabled
    assert not made.smoothing.enabled
    assert [made.label(bits) for bits in (4, 8)] == ["w4a4", "w8a8"]
    assert load_recipe("best").label(4) == "4"


def test_another_bit_set_is_of_activations_as_well():
    assert activations_recipe().with_bits((2, 4)).activations.bits == (2, 4)
    assert load_recipe("best").with_bits((2, 4)).activations.bits == ()


def test_weights_without_a_bit_width_of_activations_go_with_the_highest():
    made = activations_recipe(activations={"bits": "4-8"}).with_bits((2, 4, 8)).updated(activations={"bits": (4, 6)})
    assert [made.activations.bits_for(bits) for bits in (2, 4, 8, None)] == [6, 4, 6, None]


def test_settings_that_contradict_each_other_are_refused():
    refused(lambda: activations_recipe(smoothing={"enabled": True}), "smoothing and rotation", "choose one")
    refused(lambda: activations_recipe(activations={"bits": "1-4"}), "2 to 8")
    refused(lambda: activations_recipe(activations={"bits": "four"}), "cannot be read")
    refused(lambda: activations_recipe(activations={"bits": (9,)}), "activations.bits")
    refused(lambda: activations_recipe(activations={"group_size": 0}), "group_size")


# What files may hold


@pytest.mark.parametrize("wrong", [True, False, "4", 4.5, float("nan"), 1e308, -1, 10**30])
@pytest.mark.parametrize(
    ("section", "field"),
    [
        (None, "outer_bits"),
        (None, "learned_rounding"),
        ("data", "samples"),
        ("granularity", "group_size"),
        ("adapter", "rank"),
        ("reconstruction", "epochs"),
        ("rules", "bits"),
    ],
)
def test_a_whole_number_is_written_as_one(section, field, wrong):
    if wrong == 10**30 and field not in ("outer_bits", "learned_rounding", "bits"):
        return  # a limit of its own, if any, is another matter
    given = {field: [wrong] if field == "learned_rounding" else wrong}
    given = {"rules": [{"match": "*", **given}]} if section == "rules" else {section: given} if section else given
    refused(lambda: recipe(**given), field)


@pytest.mark.parametrize("wrong", [True, "0.1"])
def test_a_fraction_is_written_as_one(wrong):
    refused(lambda: recipe(reconstruction={"clipping_learning_rate": wrong}), "clipping_learning_rate", "valid number")
    refused(lambda: recipe(merging={"weights": [wrong]}), "merging.weights", "valid number")


def test_rules_are_limited(tmp_path):
    rule = {"match": "*", "bits": 4}
    assert len(recipe(rules=[rule] * 1000).rules) == 1000
    refused(lambda: recipe(rules=[rule] * 1001), "rules", "at most 1000 items")
    refused(lambda: recipe(rules=[{**rule, "match": "a" * 1001}]), "rules.0.match", "at most 1000 characters")
    path = tmp_path / "recipe.toml"
    path.write_text('name = "mine"\nbits = "2-8"\n' + "[[rules]]\nmatch = '*'\nignore = true\n" * 100_000)
    refused(lambda: load_recipe(path), "recipe.toml", "larger than the 1048576 bytes that are allowed")
    path.write_text("a = " + "[" * 100_000)
    refused(lambda: load_recipe(path), "recipe.toml", "not valid TOML")


def test_rules_are_compiled_once_for_all_paths():
    patterns._matcher.cache_clear()
    many = recipe(rules=[{"match": f"*.{number}.*", "bits": 4} for number in range(1000)])
    paths = [f"blocks.{number}.up" for number in range(20)]
    assert len(many.unused_rules(paths)) == 980
    assert all(many.weight_spec_for(path).fixed for path in paths)
    assert patterns._matcher.cache_info().misses == 1000
