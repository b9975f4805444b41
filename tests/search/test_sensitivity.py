"""Sensitivities against whole passes, interrupted runs, and expansions against what they predict."""

import pytest
import torch

import quept
from quept.config import Adapter
from quept.errors import InvalidInput
from quept.layers import ElasticLinear
from quept.layers.size import current_bytes
from quept.models import architecture_of
from quept.precision import at_precision, attention_operands, elastic_linears, precision_of
from quept.search import measurement
from quept.search.expansion import expand
from quept.search.measurement import measure_table
from quept.search.sensitivity import divergence_of, measure
from quept.search.table import Origin, SensitivityTable, rank_correlation
from quept.search.target import search_target

ORIGIN = Origin(metric="kl", model="a" * 64, data="text", data_sha256="b" * 64, rows=72)


@torch.no_grad()
def by_whole_passes(model, inputs, path, width):
    """KL per token, from two runs of the whole model."""
    with at_precision(model, None):
        p = model(inputs, use_cache=False).logits.double().log_softmax(-1)
    with at_precision(model, None), at_precision(model, {path: width}):
        q = model(inputs, use_cache=False).logits.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt", "gpt_neox"])
def test_each_linear_and_bit_width_is_what_whole_passes_give(elastic, inputs, family):
    model = elastic(family)
    before = precision_of(model)
    found = measure(search_target(model, inputs), keys_values=(3,))
    assert precision_of(model) == before
    assert found.keys() > elastic_linears(model).keys()
    for path, errors in list(found.items())[:: 3 if family == "llama" else 4]:
        for width, error in errors.items():
            assert error == pytest.approx(by_whole_passes(model, inputs, path, width), rel=1e-4, abs=1e-9)
            assert error > 0


def test_models_with_rotations_and_rounded_inputs(elastic, inputs):
    model = elastic(recipe="weight-activation", bits=(4, 8))
    found = measure(search_target(model, inputs))
    path, errors = next(reversed(found.items()))
    assert list(errors) == ["4", "8", "w16a4", "w16a8"]
    assert errors["8"] < errors["w16a4"] < errors["4"]
    for width, error in errors.items():
        assert error == pytest.approx(by_whole_passes(model, inputs, path, width), rel=1e-3, abs=1e-9)


def test_what_is_in_front_of_a_block_does_not_run_again(model, inputs):
    runs = []
    first, last = (search_target(model, inputs).blocks[place] for place in (0, -1))
    first.register_forward_pre_hook(lambda *_: runs.append("first"))
    last.register_forward_pre_hook(lambda *_: runs.append("last"))
    measure(search_target(model, inputs))
    widths, linears, blocks = 3, 7, 3
    assert runs.count("first") == widths * linears + blocks
    assert runs.count("last") == widths * linears * blocks + blocks


def test_the_model_is_whole_again_after_a_failure(model, inputs):
    target = search_target(model, inputs)
    blocks = list(target.blocks)
    with pytest.raises(KeyError), target.entered_at(2, torch.zeros(1)):
        raise KeyError
    assert list(target.blocks) == blocks


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(model, inputs, tmp_path, monkeypatch):
    target = search_target(model, inputs)
    measure_table(target, ORIGIN, tmp_path / "whole.json")

    class Killed(Exception):
        pass

    seen = []

    def dying(label, done, total):
        seen.append(label)
        if label == "block 2/3" and done == total // 3 + 2:
            raise Killed

    with pytest.raises(Killed):
        measure_table(target, ORIGIN, tmp_path / "table.json", progress=dying)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.json.partial", "whole.json"]
    seen.clear()
    notes = []
    measure_table(
        target, ORIGIN, tmp_path / "table.json", progress=lambda label, *_: seen.append(label), note=notes.append
    )
    assert "block 1/3" not in seen
    assert "Going on" in notes[0]
    assert (tmp_path / "table.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not (tmp_path / "table.json.partial").exists()
    monkeypatch.setattr(measurement, "measure", lambda *_, **__: pytest.fail("measured again"))
    again = measure_table(target, ORIGIN, tmp_path / "table.json", note=notes.append)
    assert again == SensitivityTable.read(tmp_path / "whole.json")
    assert "already complete" in notes[-1]
    for taken in ("table.json", "table.json.partial"):
        if taken.endswith(".partial"):
            (tmp_path / "table.json").rename(tmp_path / taken)
        with pytest.raises(InvalidInput, match=r"belongs to another measurement: data_sha256, rows differ"):
            measure_table(
                target, ORIGIN.updated(data_sha256="c" * 64, rows=3), tmp_path / "table.json", note=notes.append
            )


def test_gradients_rank_parts_as_the_exact_metric_does(model, inputs):
    target = search_target(model, inputs)
    exact = SensitivityTable(origin=ORIGIN, parts=measure(target))
    estimated = SensitivityTable(origin=ORIGIN, parts=expand(target).errors())
    assert estimated.parts.keys() == exact.parts.keys()
    assert rank_correlation(estimated, exact) > 0.95


def scaled(model, factor):
    """Make every quantization error at 4 bits that much smaller."""
    for layer in elastic_linears(model).values():
        full, rounded = layer.weight.detach().clone(), layer.derive(4).detach()
        layer.derive = lambda bits, full=full, rounded=rounded: full + factor * (rounded - full)


def test_small_changes_add_up_as_an_expansion_says(model, inputs):
    """With small errors the second order is all there is; the sum alone, without pairs, would be far off."""
    scaled(model, 0.05)
    windows = inputs.repeat(40, 1)  # many outcomes drawn for each token
    expansion = expand(search_target(model, windows))
    columns = list(expansion.columns)
    chosen = [columns.index((path, "4")) for path in elastic_linears(model)]
    last = [place for place in chosen if columns[place][0].startswith("model.layers.2.mlp")]
    target = search_target(model, inputs)
    real = divergence_of(target, {columns[place][0]: 4 for place in last})
    products = expansion.products
    assert products[last][:, last].sum() == pytest.approx(real, rel=0.15)
    single = divergence_of(target, {columns[last[0]][0]: 4})
    assert products[last[0], last[0]] == pytest.approx(single, rel=0.15)


def test_an_expansion_around_a_plan_tells_what_steps_from_it_do(model, inputs):
    target = search_target(model, inputs.repeat(20, 1))
    small = search_target(model, inputs)
    around = 4
    expansion = expand(target, around)
    with at_precision(model, None):
        assert expansion.divergence == pytest.approx(divergence_of(small, around), rel=1e-6)
    errors = expansion.errors()
    path = "model.layers.2.mlp.down_proj"
    assert errors[path]["4"] == 0
    step = divergence_of(small, {**dict.fromkeys(elastic_linears(model), 4), path: 8}) - expansion.divergence
    assert errors[path]["8"] == pytest.approx(step, rel=0.3)
    assert any(errors[name]["8"] < 0 for name in errors), "some linear is better at a higher width"


def test_hooks_are_gone_afterwards(model, inputs):
    expand(search_target(model, inputs))
    assert not any(layer._forward_hooks for layer in model.modules() if isinstance(layer, ElasticLinear))


@pytest.fixture(scope="module")
def classifier(tiny_classifier, images, tmp_path_factory):
    """A Swin, whose stages change the shape of what they are given, with weights and activations rounded."""
    recipe = quept.load_recipe("vision").with_bits((4, 8))
    recipe = recipe.updated(
        adapter=Adapter(rank=2), reconstruction=recipe.reconstruction.updated(epochs=1, batch_size=8)
    )
    directory = tmp_path_factory.mktemp("vision") / "artifact"
    return quept.load(quept.calibrate(tiny_classifier("swin"), directory, data=images, recipe=recipe).directory)


def test_an_image_classifier_has_a_row_for_every_image(classifier, images):
    target = search_target(classifier, images)
    found = measure(target)
    linears = {path for path, layer in elastic_linears(classifier).items() if not layer.spec.fixed}
    assert set(found) == linears, "layers outside the blocks have no choice of widths"
    path = next(reversed(found))
    with torch.no_grad():
        expected = classifier(pixel_values=images).logits.log_softmax(-1)
        with at_precision(classifier, {path: 4}):
            given = classifier(pixel_values=images).logits.log_softmax(-1)
    by_hand = float((expected.exp() * (expected - given)).sum(-1).mean())
    assert found[path]["4"] == pytest.approx(by_hand, rel=1e-3, abs=1e-9)


def test_a_plan_of_an_image_classifier_names_all_that_runs(classifier, images, tmp_path):
    table = quept.measure_sensitivity(classifier, images, tmp_path / "table.json")
    low = quept.allocate(classifier, table, average_bits=6.5)
    products, outer = attention_operands(classifier), set(architecture_of("swin").outer)
    assert set(low.plan.bits) == set(elastic_linears(classifier)) | set(products)
    assert all(low.plan.bits[path] == 8 for path in outer)
    for path in products:
        inside = [width for name, width in low.plan.bits.items() if name.startswith(f"{path}.")]
        assert low.plan.bits[path] == max(inside)
    quept.set_precision(classifier, low.plan)
    assert {each.bits for each in products.values()} <= {4, 8}
    assert low.bytes == current_bytes(classifier, torch.float32)
    quept.set_precision(classifier, None)
