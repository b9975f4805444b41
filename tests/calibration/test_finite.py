"""A model that is not finite at full precision is refused before anything trains, and the layer is named."""

import re

import pytest
import torch

import quept
from quept.calibration import pipeline
from quept.errors import CalibrationFailed, InvalidInput


@pytest.fixture(scope="module")
def recipe():
    return quept.load_recipe("paper").with_bits((2, 4)).adjusted(epochs=1, rank=2)


def put(model, path, value):
    with torch.no_grad():
        model.get_submodule(path).weight.view(-1)[7] = value
    return model


@pytest.fixture
def trains_nothing(monkeypatch):
    def fail(*_):
        raise AssertionError("a block was trained")

    monkeypatch.setattr(pipeline, "reconstruct", fail)


@pytest.mark.parametrize(
    "path",
    [
        "lm_head",
        "model.norm",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.self_attn.o_proj",
    ],
)
def test_a_layer_that_overflows_in_the_stored_float16_is_named(
    tiny_model, windows, recipe, tmp_path, trains_nothing, path
):
    model = tiny_model("llama", dtype=torch.float16)
    with torch.no_grad():  # so that one channel takes every product beyond 65,504
        model.get_submodule(path).weight.mul_(1 if path.endswith("norm") else 20)
    put(model, path, 60_000)
    with pytest.raises(CalibrationFailed, match=rf"in float16, .*output of {re.escape(path)}, .* 6e\+04 at"):
        quept.calibrate(model, tmp_path / "out", data=windows, recipe=recipe)
    assert list(tmp_path.iterdir()) == []


def test_what_overflows_between_layers_is_named_by_the_layer_that_it_flows_into(
    tiny_model, windows, recipe, tmp_path, trains_nothing
):
    model = tiny_model("llama", dtype=torch.float16)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(2000)
        model.model.layers[1].mlp.gate_proj.weight.mul_(2000)
    with pytest.raises(CalibrationFailed, match=r"what flows into model\.layers\.1\.mlp\.down_proj is NaN or inf"):
        quept.calibrate(model, tmp_path / "out", data=windows, recipe=recipe)


def test_the_same_model_in_float32_is_calibrated(tiny_model, windows, recipe, tmp_path):
    model = put(tiny_model("llama"), "lm_head", 60_000)
    quept.calibrate(model, tmp_path / "out", data=windows, recipe=recipe)
    assert bool(torch.isfinite(quept.load(tmp_path / "out", 2)(windows).logits).all())


def test_an_image_classifier_is_checked_alike(tiny_classifier, images, tmp_path, trains_nothing):
    model = tiny_classifier("vit", dtype=torch.float16)
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    put(model, "classifier", 60_000)
    recipe = quept.load_recipe("vision").adjusted(epochs=1)
    with pytest.raises(CalibrationFailed, match=r"in float16, .*output of classifier"):
        quept.calibrate(model, tmp_path / "out", data=images, recipe=recipe)


def test_a_weight_that_no_artifact_may_hold_is_named_before_the_work(
    tiny_model, windows, recipe, tmp_path, trains_nothing
):
    model = put(tiny_model("llama"), "model.layers.1.mlp.up_proj", 1e18)
    with pytest.raises(CalibrationFailed, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds .*beyond 16777216"):
        quept.calibrate(model, tmp_path / "out", data=windows, recipe=recipe)


def test_samples_that_the_first_check_leaves_out_are_checked_on_the_way(
    tiny_model, windows, recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(pipeline, "check_full_precision", lambda job: None)  # as if its samples were harmless
    model = tiny_model("llama")
    block = model.model.layers[1]
    with torch.no_grad():  # each as large as an artifact may hold; together they are beyond float32
        for layer in (block.post_attention_layernorm, block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
            layer.weight.fill_(1.6e7)
    with pytest.raises(
        CalibrationFailed, match=r"in float32, before anything is quantized: .*model\.layers\.1\.mlp\.down_proj"
    ):
        quept.calibrate(model, tmp_path / "out", data=windows, recipe=recipe)


def exploding(recipe):
    settings = recipe.reconstruction.updated(adapter_learning_rate=1e38, epochs=3)
    return recipe.updated(reconstruction=settings)


def test_a_loss_that_is_not_finite_blames_an_outlier_where_there_is_one(tiny_model, windows, recipe, tmp_path):
    model = put(tiny_model("llama"), "model.layers.0.mlp.up_proj", 60_000)
    message = (
        r"probably because of model\.layers\.0\.mlp\.up_proj, whose largest weight is 6e\+04 at \[0, 7\] \(the median"
    )
    with pytest.raises(CalibrationFailed, match=message):
        quept.calibrate(model, tmp_path / "out", data=windows, recipe=exploding(recipe))
    with pytest.raises(CalibrationFailed, match="Lower the learning rates") as plain:
        quept.calibrate(tiny_model("llama"), tmp_path / "out", data=windows, recipe=exploding(recipe))
    assert "probably" not in str(plain.value)


def test_sensitivities_and_texts_of_a_model_that_is_not_finite_are_refused(
    tiny_model, tiny_tokenizer, windows, recipe, tmp_path
):
    quept.calibrate(tiny_model("llama"), tmp_path / "out", data=windows, recipe=recipe, tokenizer=tiny_tokenizer)
    model = put(quept.load(tmp_path / "out"), "model.norm", float("nan"))
    layer = r"model\.norm, whose weight holds NaN or infinite values, is the first"
    for metric in ("kl", "gradient"):
        with pytest.raises(InvalidInput, match=layer):
            quept.measure_sensitivity(model, windows, tmp_path / "table.json", metric=metric)
    for temperature in (0.0, 1.0):
        with pytest.raises(InvalidInput, match=layer):
            quept.generate(model, "abc", max_new_tokens=2, temperature=temperature)
    assert not (tmp_path / "table.json").exists()
