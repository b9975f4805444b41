import pytest
import torch
from torch import nn

from quept.config import Adapter, BitGroups, Granularity, PrecisionPlan, WeightSpec
from quept.errors import InvalidInput
from quept.layers.replace import elastic_like, replace_linears
from quept.precision import (
    at_precision,
    elastic_linears,
    keep_weights,
    precision_of,
    rounded_to_nearest,
    set_precision,
)

SIZE = 12
PATHS = ("layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, hidden):
        return hidden + self.down(torch.tanh(self.up(hidden)))


class Toy(nn.Module):
    """Two blocks of two linears, and a head that is not quantized."""

    def __init__(self, bits=(2, 4, 8)):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(SIZE, 5)
        spec = WeightSpec(
            groups=BitGroups.partition(bits), granularity=Granularity(group_size=4), adapter=Adapter(rank=2)
        )
        for index, block in enumerate(self.layers):
            replace_linears(block, f"layers.{index}", {"up": spec, "down": spec}, {}, elastic_like)
        self.requires_grad_(False)

    def forward(self, hidden):
        for block in self.layers:
            hidden = block(hidden)
        return self.head(hidden)


HIDDEN = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    return Toy()


def widths(model):
    return dict(precision_of(model).bits)


def uniform(bits):
    return dict.fromkeys(PATHS, bits)


def test_a_new_model_runs_at_full_precision(model):
    assert widths(model) == uniform(None)
    assert set(elastic_linears(model)) == set(PATHS)


def test_a_bit_width_holds_for_every_elastic_layer_until_it_is_changed(model):
    full, outputs = model(HIDDEN), {}
    for bits in (8, 4, 2):
        set_precision(model, bits)
        assert widths(model) == uniform(bits)
        outputs[bits] = model(HIDDEN)
    errors = [float((outputs[bits] - full).abs().mean()) for bits in (8, 4, 2)]
    assert 0 < errors[0] < errors[1] < errors[2]
    set_precision(model, None)
    assert widths(model) == uniform(None)
    assert torch.equal(model(HIDDEN), full)


def test_going_back_to_a_bit_width_gives_the_same_output_with_and_without_kept_weights(model):
    set_precision(model, 2)
    before = model(HIDDEN)
    keep_weights(model, None)
    for bits in (2, 8, 2):
        set_precision(model, bits)
        output = model(HIDDEN)
    assert torch.equal(output, before)


def test_kept_weights_share_one_budget_over_all_layers(model):
    weight_cache = keep_weights(model, 3 * SIZE * SIZE * 4)
    set_precision(model, 4)
    model(HIDDEN)
    assert weight_cache.bytes_by_bits() == {4: 3 * SIZE * SIZE * 4}


@pytest.mark.parametrize("make", [dict, PrecisionPlan])
def test_a_plan_sets_the_layers_it_names_and_leaves_the_others(model, make):
    set_precision(model, 8)
    set_precision(model, make({"layers.0.up": 2, "layers.1.down": None}))
    assert widths(model) == {**uniform(8), "layers.0.up": 2, "layers.1.down": None}


def test_the_plan_in_force_sets_another_model_to_the_same_widths(model):
    mixed = {"layers.0.up": 2, "layers.0.down": 4, "layers.1.up": 8, "layers.1.down": None}
    set_precision(model, mixed)
    other = Toy()
    set_precision(other, precision_of(model))
    assert widths(other) == mixed
    assert torch.equal(other(HIDDEN), model(HIDDEN))


def test_patterns_set_the_layers_they_name_and_one_that_names_none_is_refused(model):
    set_precision(model, {"*": 4, "layers.1.*": 2, "*.1.down": None})
    mixed = {**uniform(4), "layers.1.up": 2, "layers.1.down": None}
    assert widths(model) == mixed
    with pytest.raises(InvalidInput, match=r"does not have: \['layers\.2\.\*'\]"):
        set_precision(model, {"*": 8, "layers.2.*": 4})
    assert widths(model) == mixed
    set_precision(model, {"*": 8, "layers.2.*": 4}, strict=False)
    assert widths(model) == uniform(8)


def test_a_bit_width_of_keys_and_values_is_not_for_a_linear(model):
    set_precision(model, 8)
    with pytest.raises(InvalidInput, match=r"layers\.0\.up kv4, which is of keys and values"):
        set_precision(model, {"layers.0.up": "kv4"})
    assert widths(model) == uniform(8)


def test_rounding_to_nearest_follows_a_plan(model):
    with rounded_to_nearest(model, {"layers.0.*": 2}):
        for path, layer in elastic_linears(model).items():
            in_force = layer.weight if layer.setting.weight is None else layer.setting.weight
            assert torch.equal(in_force, layer.nearest(2) if path.startswith("layers.0") else layer.weight)
    assert widths(model) == uniform(None)


def test_a_plan_cannot_be_changed_and_does_not_follow_the_mapping_it_came_from():
    mapping = {"a": 2}
    plan = PrecisionPlan(mapping)
    mapping["a"] = 8
    assert plan.bits["a"] == 2
    with pytest.raises(TypeError):
        plan.bits["a"] = 8


@pytest.mark.parametrize("precision", [3, 0, -1, {"layers.0.up": 4, "layers.0.down": 3}, {"layers.1.up": 0}])
def test_an_uncalibrated_bit_width_is_refused_and_nothing_changes(model, precision):
    set_precision(model, {"layers.0.up": 2, "layers.0.down": 8})
    before = widths(model)
    with pytest.raises(InvalidInput, match=r"not in the calibrated set \[2, 4, 8\]|widths go from 2 to 8"):
        set_precision(model, precision)
    assert widths(model) == before


@pytest.mark.parametrize("plan", [{"layers.0.up": 4, "layers.2.up": 4}, {"head": 4}, {3: 4, "head": 4}, {"up": None}])
def test_a_plan_with_unknown_layers_is_refused_and_nothing_changes(model, plan):
    with pytest.raises(InvalidInput, match="layers that the model does not have") as caught:
        set_precision(model, plan)
    assert str(next(iter(plan.keys() - set(PATHS)))) in str(caught.value)
    assert "layers.0.down" in str(caught.value)
    assert widths(model) == uniform(None)


@pytest.mark.parametrize("value", [True, False, 4.0, [4], object()])
def test_what_only_looks_like_a_bit_width_is_refused_and_nothing_changes(model, value):
    for precision in (value, {"layers.0.up": value}):
        with pytest.raises(InvalidInput, match="neither a bit-width, a plan nor None"):
            set_precision(model, precision)
    assert widths(model) == uniform(None)


@pytest.mark.parametrize("call", [precision_of, lambda m: set_precision(m, 4), lambda m: keep_weights(m, None)])
def test_a_model_without_elastic_layers_is_refused_with_what_to_do(call):
    with pytest.raises(InvalidInput, match=r"This Sequential has no elastic layers; .*quept\.load"):
        call(nn.Sequential(nn.Linear(2, 2)))


def test_the_precision_before_comes_back_after_the_enclosed_code(model):
    mixed = {**uniform(8), "layers.0.up": 2}
    set_precision(model, mixed)
    with at_precision(model, 4):
        assert widths(model) == uniform(4)
        with at_precision(model, {"layers.1.up": 2}):
            assert widths(model) == {**uniform(4), "layers.1.up": 2}
            with at_precision(model, None):
                assert widths(model) == uniform(None)
            assert widths(model) == {**uniform(4), "layers.1.up": 2}
        assert widths(model) == uniform(4)
    assert widths(model) == mixed


def test_the_precision_before_comes_back_after_an_exception(model):
    set_precision(model, 8)
    with pytest.raises(KeyError), at_precision(model, 4), at_precision(model, 2):
        raise KeyError
    assert widths(model) == uniform(8)


def test_entering_an_impossible_precision_changes_nothing(model):
    set_precision(model, 8)
    with pytest.raises(InvalidInput), at_precision(model, 3):
        pytest.fail("the enclosed code must not run")
    assert widths(model) == uniform(8)


def test_rounding_to_nearest_runs_the_baseline_and_leaves_the_precision(model):
    set_precision(model, 8)
    before = model(HIDDEN)
    with rounded_to_nearest(model, 2):
        rounded = model(HIDDEN)
        for layer in elastic_linears(model).values():
            assert torch.equal(layer.setting.weight, layer.nearest(2))
    assert widths(model) == uniform(8)
    assert not torch.equal(rounded, before)
    assert torch.equal(model(HIDDEN), before)


def test_rounding_to_nearest_ends_after_an_exception_and_refuses_unknown_widths(model):
    with pytest.raises(KeyError), rounded_to_nearest(model, 2):
        raise KeyError
    with pytest.raises(InvalidInput, match="3 bits"), rounded_to_nearest(model, 3):
        pytest.fail("the enclosed code must not run")
    assert all(layer.setting.weight is None for layer in elastic_linears(model).values())


def test_rounding_to_nearest_is_undone_when_it_fails_halfway(model, monkeypatch):
    layers = list(elastic_linears(model).values())

    def out_of_memory(bits):
        raise MemoryError

    monkeypatch.setattr(layers[2], "nearest", out_of_memory)
    with pytest.raises(MemoryError), rounded_to_nearest(model, 2):
        pytest.fail("the enclosed code must not run")
    assert all(layer.setting.weight is None for layer in layers)
