"""What transformers writes of a quept model: the model at the precision in force, or an error, never anything else."""

import copy
import io
import json
from itertools import pairwise

import pytest
import torch
from families import FAMILIES, VISION
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

import quept
from quept.assembly import make_elastic
from quept.errors import InvalidInput
from quept.models.checkpoint import quiet

RECIPES = {"best": {}, "paper": {}, "weight-activation": {}}


@pytest.fixture(scope="module")
def artifacts(tiny_model, windows, tmp_path_factory):
    """Artifacts of a tiny model by recipe."""
    folder = tmp_path_factory.mktemp("artifacts")
    for name in RECIPES:
        model = tiny_model("llama", tie_word_embeddings=True)
        quept.calibrate(model, folder / name, data=windows[:2], recipe=name, bits="2,4,8", epochs=1, batch_size=2)
    return folder


def logits(model, inputs):
    with torch.no_grad():
        return model(inputs).logits


def reopened(model, directory, auto_class=AutoModelForCausalLM, **options):
    """The plain model that transformers opens of what it saved, with every weight from the checkpoint."""
    with quiet():
        model.save_pretrained(directory, **options)
        plain, report = auto_class.from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not any(isinstance(part, quept.layers.ElasticLinear) for part in plain.modules())
    assert "quantization_config" not in json.loads((directory / "config.json").read_text())
    return plain


@pytest.mark.parametrize("recipe", ["best", "paper"])
def test_a_saved_model_is_the_one_at_the_precision_in_force(artifacts, windows, tmp_path, recipe):
    model, seen = quept.load(artifacts / recipe, exact=True), []
    for precision in (None, 2, 4, {"model.layers.0.*": 2, "model.layers.1.*": 8}):
        quept.set_precision(model, precision)
        plain = reopened(model, tmp_path / f"{len(seen)}")
        seen.append(logits(plain, windows))
        torch.testing.assert_close(seen[-1], logits(model, windows), rtol=1e-4, atol=1e-4)
    assert all((a - b).abs().max() > 1e-2 for a, b in pairwise(seen))
    with quept.at_precision(model, 2):  # in force here, whatever the default is
        inside = reopened(model, tmp_path / "inside", max_shard_size="20KB", state_dict=model.state_dict())
    assert torch.equal(logits(inside, windows), seen[1])


@pytest.mark.parametrize("family", [*FAMILIES, *VISION])
def test_every_family_is_saved_in_its_own_layout(tiny_model, tiny_classifier, windows, images, tmp_path, family):
    language = family in FAMILIES
    model = (tiny_model if language else tiny_classifier)(family)
    inputs = windows if language else images
    recipe = quept.load_recipe("paper" if language else "vision-weights")
    off = {name: {"enabled": False} for name in ("rotation", "smoothing", "reparameterization")}
    make_elastic(model, recipe.updated(adapter={"kind": "none"}, learned_rounding=(), **off))
    quept.set_precision(model, 3)
    found = logits(model, inputs)
    opener = AutoModelForCausalLM if language else AutoModelForImageClassification
    torch.testing.assert_close(logits(reopened(model, tmp_path, opener), inputs), found, rtol=1e-4, atol=1e-4)


def test_what_no_plain_model_computes_is_refused(artifacts, tmp_path):
    rotated = quept.load(artifacts / "weight-activation")
    weights = quept.load(artifacts / "best", "4kv4")
    for model, message in ((rotated, "rotates activations"), (weights, "quantizes keys and values")):
        for save in (
            model.save_pretrained,
            type(model).save_pretrained.__get__(model),
            copy.deepcopy(model).save_pretrained,
        ):
            with pytest.raises(InvalidInput, match=f"{message}.*quept.save"):
                save(tmp_path / "refused")
        assert not list((tmp_path / "refused").iterdir())
    with pytest.raises(InvalidInput, match="save_pretrained"):
        weights.dequantize()
    quept.set_precision(weights, "w4a16kv16")
    assert reopened(weights, tmp_path / "written")


@pytest.mark.parametrize("rounded", ["4", "w16a4"])
def test_rounded_activations_are_refused(tiny_classifier, images, tmp_path, rounded):
    recipe = quept.load_recipe("vision").updated(outer_bits=8)
    quept.calibrate(tiny_classifier("vit"), tmp_path / "vit", data=images[:4], recipe=recipe, bits="4,8", epochs=0)
    model = quept.load(tmp_path / "vit", rounded, exact=True)
    with pytest.raises(InvalidInput, match=r"rounds activations.*set_precision"):
        model.save_pretrained(tmp_path / "refused")
    quept.set_precision(model, "w4a16")
    plain = reopened(model, tmp_path / "plain", AutoModelForImageClassification)
    torch.testing.assert_close(logits(plain, images), logits(model, images), rtol=1e-4, atol=1e-4)


def test_a_tied_head_of_its_own_bit_width_is_refused(tiny_model, tmp_path):
    recipe = quept.load_recipe("paper").updated(outer_bits=4, adapter={"kind": "none"}, smoothing={"enabled": False})
    model = tiny_model("llama", tie_word_embeddings=True)
    make_elastic(model, recipe)
    assert reopened(model, tmp_path)  # at full precision it is the embeddings
    quept.set_precision(model, 4)
    with pytest.raises(InvalidInput, match="head is quantized, and tied"):
        model.save_pretrained(tmp_path)


def test_copies_casts_and_pickles_save_what_they_are(artifacts, windows, tmp_path):
    model = quept.load(artifacts / "best", 4)
    plain = reopened(model, tmp_path / "plain")
    with pytest.raises(RuntimeError, match="Missing key"):
        AutoModelForCausalLM.from_config(plain.config).load_state_dict(model.state_dict())
    half = copy.deepcopy(model).to(torch.bfloat16)
    written = reopened(half, tmp_path / "half")
    assert written.dtype == torch.bfloat16
    assert torch.equal(written.lm_head.weight, plain.lm_head.weight.bfloat16())
    torch.testing.assert_close(logits(written, windows), logits(half, windows), rtol=0.1, atol=0.1)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(logits(again, windows), logits(model, windows))
    quept.set_precision(model, 2)  # the copy stays at its own
    assert torch.equal(logits(reopened(again, tmp_path / "again"), windows), logits(plain, windows))


@pytest.mark.parametrize(
    "device_map", ["auto", "cpu", torch.device("cpu"), {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}]
)
def test_a_device_map_to_one_device_is_taken(artifacts, windows, device_map):
    expected = quept.load(artifacts / "paper", 4)
    model = quept.load(artifacts / "paper", 4, device_map=device_map)
    assert model.device == torch.device("cuda:0" if device_map == "auto" and torch.cuda.is_available() else "cpu")
    torch.testing.assert_close(logits(model, windows.to(model.device)).cpu(), logits(expected, windows))


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ({"model.layers.0": 0, "model.layers.1": 1}, "several devices"),
        ({"model": "cpu", "lm_head": "disk"}, "several devices"),
        ({}, "several devices"),
        ("balanced", "several devices"),
        ({"": "disk"}, "several devices"),
        ("tpu", "not known"),
        (99, "cuda:99"),
    ],
)
def test_a_device_map_to_several_devices_or_to_none_is_told(tmp_path, device_map, message):
    with pytest.raises(InvalidInput, match=message):
        quept.load(tmp_path, device_map=device_map)


def test_calibrating_a_model_in_memory_leaves_it_as_it_was(tiny_model, windows, tmp_path):
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quept.calibrate(model, tmp_path / "out", data=windows[:2], recipe="best", bits="4", epochs=0)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    reopened(model, tmp_path / "plain")
