"""Every family with weights and activations rounded, end to end."""

import pytest
import torch
from comparison import assert_saving_keeps_everything, relative_error
from families import FAMILIES

import quept
from quept.config import Adapter, Granularity, Reconstruction
from quept.errors import InvalidInput
from quept.generation import cache_arguments, cache_of
from quept.models import architecture_of
from quept.precision import elastic_linears, rounded_to_nearest

BEST = quept.load_recipe("weight-activation-best")
# Full batches and many steps; inputs' ranges start where they round best.
THOROUGH = BEST.updated(
    reconstruction=BEST.reconstruction.updated(
        batch_size=8, epochs=30, train_every=(), label_weight=0.0, keep="learned"
    )
)
PAPER = quept.load_recipe("weight-activation")
QUICK = PAPER.updated(adapter=Adapter(rank=2), reconstruction=Reconstruction(epochs=1, batch_size=4))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tiny_model):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def artifact(model, windows, tmp_path_factory):
    directory = tmp_path_factory.mktemp("family") / "artifact"
    return quept.calibrate(model, directory, data=windows, recipe=QUICK, device="cpu").directory


@torch.no_grad()
def logits(model, windows):
    return model(input_ids=windows, use_cache=False).logits


def linear_widths(model):
    plan = quept.precision_of(model)
    return {plan.bits[path] for path in elastic_linears(model)}


def test_loaded_at_full_precision_it_is_the_original(model, artifact, windows):
    assert relative_error(logits(quept.load(artifact), windows), logits(model, windows)) < 1e-5


def test_bit_widths_of_weights_and_activations_are_chosen_apart(model, artifact, windows):
    loaded = quept.load(artifact)
    exact, errors = logits(model, windows), {}
    for precision in ("w16a8", "w8a16", "w8a8", "w4a16", "w16a4", "w4a8", "w4a4"):
        quept.set_precision(loaded, precision)
        assert linear_widths(loaded) <= {precision, int(precision[1])}
        errors[precision] = relative_error(logits(loaded, windows), exact)
    assert errors["w8a8"] < errors["w4a8"] < errors["w4a4"]
    assert errors["w16a8"] < errors["w16a4"] < errors["w4a4"]
    assert errors["w8a16"] < errors["w4a16"]
    # A number means what was calibrated together.
    quept.set_precision(loaded, 4)
    both = logits(loaded, windows)
    quept.set_precision(loaded, "w4a4")
    assert logits(loaded, windows).equal(both)


def test_save_then_load_is_identity(artifact, windows, tmp_path):
    assert_saving_keeps_everything(
        artifact, tmp_path / "again", lambda model: logits(model, windows), (8, 5, "w4a8", None)
    )


def test_generation_steps_through_a_cache_as_through_one_pass(artifact, windows):
    """Tokens are rounded one by one, so that those that come later change nothing."""
    loaded = quept.load(artifact, 4)
    together = logits(loaded, windows[:2])
    cache, steps = None, []
    with torch.no_grad():
        for token in windows[:2].T:
            output = loaded(input_ids=token.unsqueeze(1), **cache_arguments(cache), use_cache=True)
            cache = cache_of(output)
            steps.append(output.logits)
    close = (torch.cat(steps, 1) - together).abs() < 1e-3 * together.std()
    # A value half-way between two codes may fall to either side when sums are made in another order.
    assert close.float().mean() > 0.5
    assert relative_error(steps[0], together[:, :1]) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_calibration_beats_rounding_in_every_block_at_every_bit_width(family, tiny_model, seen, tmp_path):
    report = quept.calibrate(tiny_model(family), tmp_path / "artifact", data=seen, recipe=THOROUGH, device="cpu")
    errors = report.manifest.block_errors
    assert len(errors) == 2 * len(BEST.bits)
    assert not [error for error in errors if not error.calibrated < error.rounding]


@pytest.mark.parametrize("changes", [{"granularity": Granularity(group_size=16, grouped_bits=(4,))}, {"group_size": 8}])
def test_groups_run_and_load(changes, tiny_model, windows, tmp_path):
    group_size = changes.pop("group_size", None)
    recipe = QUICK.updated(activations=QUICK.activations.updated(group_size=group_size), **changes)
    model = tiny_model("llama")
    directory = quept.calibrate(model, tmp_path / "artifact", data=windows, recipe=recipe, device="cpu").directory
    loaded = quept.load(directory)
    exact = logits(model, windows)
    errors = []
    for bits in (4, 6, 8):
        quept.set_precision(loaded, bits)
        errors.append(relative_error(logits(loaded, windows), exact))
    assert errors[0] > errors[1] > errors[2]


def test_a_bit_width_of_weights_below_those_of_activations_goes_with_the_highest(tiny_model, windows, tmp_path):
    recipe = QUICK.with_bits((2, 4, 8)).updated(activations={"bits": (4, 8)})
    model = tiny_model("llama")
    directory = quept.calibrate(model, tmp_path / "artifact", data=windows, recipe=recipe, device="cpu").directory
    loaded = quept.load(directory, 2)
    assert linear_widths(loaded) == {2}
    at_two = logits(loaded, windows)
    quept.set_precision(loaded, "w2a8")
    assert logits(loaded, windows).equal(at_two)
    with pytest.raises(InvalidInput, match=r"Activations of 2 bits are not in the calibrated set \[4, 8\]"):
        quept.set_precision(loaded, "w2a2")


def test_an_artifact_of_weights_alone_says_how_to_get_activations(tiny_model, windows, tmp_path):
    recipe = quept.load_recipe("paper").updated(adapter=Adapter(rank=2), reconstruction=QUICK.reconstruction)
    model = tiny_model("llama")
    loaded = quept.load(quept.calibrate(model, tmp_path / "artifact", data=windows, recipe=recipe).directory)
    with pytest.raises(InvalidInput, match="a recipe that rounds them, such as weight-activation"):
        quept.set_precision(loaded, "w4a8")
    quept.set_precision(loaded, "w4a16")
    assert linear_widths(loaded) == {4}


def test_every_linear_reads_exactly_one_quantized_tensor():
    for family in FAMILIES:
        architecture = architecture_of(family)
        assert sorted(path for readers in architecture.inputs for path in readers) == sorted(architecture.linears)


def test_keys_and_values_stay_quantized_when_the_attention_implementation_is_changed(artifact, windows):
    loaded = quept.load(artifact, "kv2")
    quantized = logits(loaded, windows)
    loaded.set_attn_implementation("eager")
    assert not torch.allclose(logits(loaded, windows), quantized, rtol=1e-3)
    quept.set_precision(loaded, "kv2")
    torch.testing.assert_close(logits(loaded, windows), quantized, rtol=1e-3, atol=1e-3)


def test_the_baseline_rounds_what_is_named(artifact, windows):
    loaded = quept.load(artifact)
    before, exact = loaded.state_dict().keys(), logits(loaded, windows)
    with rounded_to_nearest(loaded, "w16a16"):
        assert logits(loaded, windows).equal(exact)
    errors = {}
    for precision in ("w16a4", "w4a16", "w4a4", "w4a4kv2", "kv2", "w8a8"):
        with rounded_to_nearest(loaded, precision):
            errors[precision] = relative_error(logits(loaded, windows), exact)
    assert 0 < errors["w8a8"] < min(errors["w16a4"], errors["w4a16"])
    assert max(errors["w16a4"], errors["w4a16"]) < errors["w4a4"] < errors["w4a4kv2"]
    assert errors["kv2"] > 0
    assert loaded.state_dict().keys() == before
    assert logits(loaded, windows).equal(exact)
