"""Rules of a recipe: linears left out, at one bit-width, with groups of their own; from a file to a model that runs."""

import json

import pytest
import torch
from torch import nn

import quept
from quept.calibration.progress import Silent
from quept.errors import InvalidInput
from quept.layers import ElasticLinear
from quept.layers.size import linear_bits, packed_bytes
from quept.precision import elastic_linears
from quept.search.cost import Costs

RULES = """
name = "ruled"
bits = "2,4,8"
learned_rounding = [2, 4]
rules = [
    { match = "*.down_proj", ignore = true },
    { match = "model.layers.0.self_attn.*", group_size = 8, learned_rounding = [4] },
    { match = "model.layers.1.mlp.up_proj", bits = 3, learned_rounding = [3] },
    { match = "model.layers.9.*", ignore = true },
]

[store]
master_bits = 8

[granularity]
group_size = 16
grouped_bits = [2, 3, 4]

[adapter]
kind = "none"

[reconstruction]
epochs = 2
batch_size = 4
clip_init = "search"

[merging]
strategy = "per-group"

[smoothing]
enabled = false
"""


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def artifact(tiny_model, windows, tmp_path_factory):
    """An artifact, the model it was made from, and what was said of it."""
    directory, told = tmp_path_factory.mktemp("rules"), Notes()
    (directory / "ruled.toml").write_text(RULES)
    model = tiny_model("llama")
    quept.calibrate(model, directory / "out", data=windows, recipe=directory / "ruled.toml", progress=told)
    return directory / "out", model, told.notes


@torch.no_grad()
def logits(model, windows):
    return model(windows[:2]).logits


def test_rules_leave_layers_out_and_change_others(artifact, windows):
    directory, original, notes = artifact
    loaded = quept.load(directory, packed=False)
    layers = elastic_linears(loaded)
    assert not any("down_proj" in path for path in layers)
    for index, block in enumerate(loaded.model.layers):
        assert type(block.mlp.down_proj) is nn.Linear
        assert torch.equal(block.mlp.down_proj.weight, original.model.layers[index].mlp.down_proj.weight)
    ruled, other = layers["model.layers.0.self_attn.q_proj"], layers["model.layers.1.self_attn.q_proj"]
    assert (ruled.scales_per_row(2), other.scales_per_row(2)) == (ruled.in_features // 8, other.in_features // 16)
    assert (ruled.spec.learned_rounding, other.spec.learned_rounding) == ((4,), (2, 4))
    assert [note for note in notes if "rule" in note] == [
        "The rule for 'model.layers.9.*' matches no layer that the recipe quantizes, such as "
        "model.layers.0.self_attn.q_proj."
    ]


def test_a_linear_with_one_bit_width_trains_and_runs_at_it_whatever_the_model_runs_at(artifact, windows):
    loaded = quept.load(artifact[0], packed=False)
    fixed = elastic_linears(loaded)["model.layers.1.mlp.up_proj"]
    assert fixed.spec.groups.bits == (3,)
    grouped, grid, offset = fixed.derivation(3)
    assert not torch.equal((grouped / grid.scale + offset).round(), (grouped / grid.scale).round()), "it learned"
    outputs = {}
    for bits in (2, 4, 8):
        quept.set_precision(loaded, bits)
        assert fixed.bits == 3
        outputs[bits] = logits(loaded, windows)
    assert not torch.equal(outputs[2], outputs[4])
    expected = fixed.derive(3)
    hidden = torch.randn(3, fixed.in_features)
    torch.testing.assert_close(fixed(hidden), hidden @ expected.T)
    quept.set_precision(loaded, None)
    assert fixed.bits is None
    with pytest.raises(InvalidInput, match="3 bits are not in the calibrated set"):
        quept.set_precision(loaded, 3)
    with pytest.raises(InvalidInput, match="8 bits, but it was calibrated for 3 alone"):
        quept.set_precision(loaded, {fixed.path: 8})


def test_higher_bits_are_closer_and_packed_weights_and_copies_say_the_same(artifact, windows, tmp_path):
    directory, original, _ = artifact
    loaded, packed, exact = quept.load(directory, packed=False), quept.load(directory), logits(original, windows)
    errors = []
    for bits in (2, 4, 8):
        quept.set_precision(loaded, bits)
        quept.set_precision(packed, bits)
        found = logits(loaded, windows)
        torch.testing.assert_close(logits(packed, windows), found, rtol=0.05, atol=0.05 * float(found.abs().max()))
        errors.append(float((found - exact).square().mean()))
    assert errors == sorted(errors, reverse=True)
    quept.set_precision(loaded, 4)
    quept.save(loaded, tmp_path / "again")
    assert torch.equal(logits(quept.load(tmp_path / "again", 4, packed=False), windows), logits(loaded, windows))


def test_sizes_and_plans_count_what_rules_leave(artifact, windows):
    loaded = quept.load(artifact[0], packed=False)
    costs = Costs.of(loaded, torch.float32)
    assert costs.only == {"model.layers.1.mlp.up_proj": 3}
    assert not any("down_proj" in path for path in costs.weights)
    total = costs.model_bytes(sum(found[4] for found in costs.bits.values()))
    assert abs(total - packed_bytes(loaded, 4, torch.float32)) <= 2
    left = sum(module.weight.nbytes for module in loaded.modules() if type(module) is nn.Linear)
    assert costs.outside > left
    fixed = elastic_linears(loaded)["model.layers.1.mlp.up_proj"]
    assert linear_bits(fixed, 8, torch.float32) == linear_bits(fixed, 2, torch.float32)


def test_an_artifact_names_its_rules(artifact):
    manifest = json.loads((artifact[0] / "quept.json").read_text())
    assert manifest["recipe"]["rules"][0]["match"] == "*.down_proj"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_left_out_of_a_rotated_model_is_exact(family, tiny_model, windows, tmp_path):
    quick = quept.load_recipe("weight-activation").with_bits((4, 8))
    left = {"llama": "*.down_proj", "gpt2": "*.mlp.c_proj"}[family]
    recipe = quick.updated(
        rules=({"match": left, "ignore": True}, {"match": "*.1.*", "bits": 8}),
        reconstruction=quick.reconstruction.updated(epochs=1),
        adapter=quick.adapter.updated(rank=2),
    )
    model = tiny_model(family)
    expected = logits(model, windows)
    quept.calibrate(model, tmp_path / "out", data=windows, recipe=recipe)
    loaded = quept.load(tmp_path / "out", packed=False)
    torch.testing.assert_close(logits(loaded, windows), expected, rtol=1e-3, atol=1e-3)
    for precision in ("w4a4", "w4a8", 8):
        quept.set_precision(loaded, precision)
        assert logits(loaded, windows).isfinite().all()
    quept.set_precision(loaded, "w4a4")
    layers = elastic_linears(loaded)
    assert {layer.activation_bits for layer in layers.values()} == {4}
    assert {layer.bits for path, layer in layers.items() if ".1." in path} == {8}


@torch.no_grad()
def test_rules_hold_for_images_and_for_layers_outside_the_blocks(tiny_classifier, images, tmp_path):
    vision = quept.load_recipe("vision").with_bits((4, 8))
    recipe = vision.updated(
        rules=(
            {"match": "*.0.*.output.dense", "ignore": True},
            {"match": "*.0.mlp.fc2", "ignore": True},
            {"match": "classifier", "ignore": True},
            {"match": "*patch_embeddings*", "bits": 4},
        ),
        outer_bits=8,
        reconstruction=vision.reconstruction.updated(epochs=1, batch_size=8),
        adapter=vision.adapter.updated(rank=2),
    )
    model = tiny_classifier("vit")
    told = Notes()
    with torch.enable_grad():
        quept.calibrate(model, tmp_path / "out", data=images, recipe=recipe, progress=told)
    loaded = quept.load(tmp_path / "out", packed=False)
    assert type(loaded.classifier) is nn.Linear
    outer = [part for path, part in loaded.named_modules() if "patch_embeddings" in path and hasattr(part, "spec")]
    assert [part.spec.groups.bits for part in outer if isinstance(part, ElasticLinear)] == [(4,)]
    ignored = [path for path, part in loaded.named_modules() if type(part) is nn.Linear and ".0." in path]
    assert ignored, "a linear of the first block stays as it was"
    assert any("matches no layer" in note for note in told.notes)  # one of the two names does not exist here
    exact, found = model(pixel_values=images).logits, loaded(pixel_values=images).logits
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3)
    quept.set_precision(loaded, "w8a8")
    assert (loaded(pixel_values=images).logits - exact).norm() < 0.2 * exact.norm()


def test_rules_that_leave_nothing_are_refused(tiny_model, windows, tmp_path):
    recipe = quept.load_recipe("best").updated(rules=({"match": "*", "ignore": True},))
    with pytest.raises(InvalidInput, match="ignore every linear"):
        quept.calibrate(tiny_model("llama"), tmp_path / "out", data=windows, recipe=recipe)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"match": "*"}, "changes nothing"),
        ({"match": "*", "ignore": True, "bits": 4}, "bits has no meaning"),
        ({"match": "", "ignore": True}, "match"),
        ({"match": "*", "bits": 9}, "bits"),
        ({"match": "*", "learned_rounding": [8]}, "leave that bit-width out"),
        ({"match": "*", "width": 4}, "width"),
    ],
)
def test_a_rule_says_what_is_wrong_with_it(rule, told):
    with pytest.raises(InvalidInput, match=told):
        quept.load_recipe("best").updated(rules=(rule,))


def test_groups_need_a_bit_width_that_has_them():
    best = quept.load_recipe("best")
    with pytest.raises(InvalidInput, match="grouped_bits is empty"):
        best.updated(granularity=best.granularity.updated(grouped_bits=()), rules=({"match": "*", "group_size": 32},))


def test_the_last_rule_that_sets_something_decides():
    recipe = quept.load_recipe("best").updated(
        rules=(
            {"match": "*", "group_size": 32},
            {"match": "a.*", "ignore": True},
            {"match": "a.b", "bits": 4},
            {"match": "a.?", "group_size": 64},
        )
    )
    assert recipe.weight_spec_for("a.long") is None
    spec = recipe.weight_spec_for("a.b")
    assert (spec.fixed, spec.groups.bits, spec.granularity.group_size) == (True, (4,), 64)
    assert recipe.weight_spec_for("c").granularity.group_size == 32
    assert recipe.unused_rules(["a.b", "c"]) == []
    assert recipe.unused_rules(["c"]) == ["a.*", "a.b", "a.?"]
