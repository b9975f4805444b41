"""Every family of image classifiers, end to end: captured, folded, calibrated, stored and switched."""

import json

import pytest
import torch
from comparison import assert_saving_keeps_everything, relative_error
from families import VISION
from safetensors.torch import load_file
from torch import nn

import quept
from quept.attention import PRODUCTS
from quept.calibration.block import CalibrationBlock
from quept.calibration.capture import ModelHead, ModelStem
from quept.config import FULL, Adapter, Reconstruction
from quept.errors import InvalidInput
from quept.layers.convolution import ElasticConv2d
from quept.layers.size import current_bytes, packed_bytes
from quept.models import BlockContext, architecture_of
from quept.precision import attention_operands, elastic_linears, rounded_to_nearest
from quept.transforms import Reparameterize

CPU = torch.device("cpu")
PAPER = quept.load_recipe("vision")
BEST = quept.load_recipe("vision-best")
QUICK = PAPER.updated(
    adapter=Adapter(rank=2),
    reconstruction=PAPER.reconstruction.updated(epochs=1, batch_size=8, keep="learned"),
    name="quick",
)
THOROUGH = BEST.updated(
    reconstruction=BEST.reconstruction.updated(batch_size=16, epochs=120, train_every=(), keep="learned")
)


@pytest.fixture(scope="module", params=VISION)
def model(request, tiny_classifier):
    return tiny_classifier(request.param)


@pytest.fixture(scope="module")
def artifact(model, images, tmp_path_factory):
    directory = tmp_path_factory.mktemp("family") / "artifact"
    return quept.calibrate(model, directory, data=images, recipe=QUICK, device="cpu").directory


@torch.no_grad()
def logits(model, images):
    return model(pixel_values=images).logits


def entered(model, images):
    """The blocks under calibration, each with what flows into it at full precision."""
    architecture = architecture_of(model.config.model_type)
    stem = ModelStem(model, architecture, torch.float32)
    hidden, found = stem.hidden_states(images), []
    for index, call in enumerate(stem.calls(images)):
        context = BlockContext.of(architecture, model, index)
        block = CalibrationBlock(architecture.block_list(model)[index], context, QUICK, call, CPU, torch.float32)
        found.append((block, hidden))
        with torch.no_grad():
            hidden = block.run(hidden)
    return found, hidden


@torch.no_grad()
def test_captured_calls_and_the_exit_replay_the_model(model, images):
    _, hidden = entered(model, images)
    head = ModelHead(model, architecture_of(model.config.model_type), torch.float32, CPU, images[:1])
    torch.testing.assert_close(head(hidden), logits(model, images), rtol=1e-4, atol=1e-4)


def test_every_linear_of_every_block_is_found(model):
    architecture = architecture_of(model.config.model_type)
    for index, block in enumerate(architecture.block_list(model)):
        context = BlockContext.of(architecture, model, index)
        linears = {path for path, module in block.named_modules() if isinstance(module, nn.Linear)}
        # The relative positions' own layers, where there are any, are no linears.
        assert set(context.architecture.linears) == linears
        read = [path for readers in context.architecture.inputs for path in readers]
        assert sorted(read) == sorted(linears)
        assert len(context.attentions) == sum(path.endswith("q_proj") for path in linears)
    outer = architecture.outer_layers(model)
    assert sum(isinstance(layer, nn.Conv2d) for layer in outer.values()) == 1
    assert any(isinstance(layer, nn.Linear) for layer in outer.values())


@torch.no_grad()
def test_reparameterization_changes_no_block(model, images):
    for block, hidden in entered(model, images)[0]:
        transform = Reparameterize(QUICK)
        watched = transform.observed_inputs(block.context)
        with block.observed(watched, 1000) as inputs:
            before = block.run(hidden)
        block.fold(transform, inputs)
        assert relative_error(block.run(hidden), before) < 1e-5
        with block.observed(watched, 1000) as again:
            block.run(hidden)
        for path in watched:
            assert not again[path].equal(inputs[path])
            # What range placing takes for the new inputs is what they are.
            torch.testing.assert_close(block.multiplied(path, inputs[path]), again[path], rtol=1e-4, atol=1e-4)
            if block.folded[path].shift is not None and block.folded[path].shift.any():
                widths = again[path].quantile(0.99, 0) - again[path].quantile(0.01, 0)
                assert widths.max() / widths.min() < 2, "channels have one range in common"


def test_loaded_at_full_precision_it_is_the_original(model, artifact, images):
    assert relative_error(logits(quept.load(artifact), images), logits(model, images)) < 1e-4


def test_every_bit_width_is_closer_than_the_one_below(model, artifact, images):
    loaded, exact = quept.load(artifact), logits(model, images)
    errors = {}
    for precision in ("w4a4", "w4a8", "w8a8", "w8a16", "w16a8", "w16a4"):
        quept.set_precision(loaded, precision)
        errors[precision] = relative_error(logits(loaded, images), exact)
    assert errors["w8a8"] < errors["w4a8"] < errors["w4a4"]
    assert errors["w16a8"] < errors["w16a4"]
    quept.set_precision(loaded, 4)
    both = logits(loaded, images)
    quept.set_precision(loaded, "w4a4")
    assert logits(loaded, images).equal(both)


def test_save_then_load_is_identity(artifact, images, tmp_path):
    assert_saving_keeps_everything(
        artifact, tmp_path / "again", lambda model: logits(model, images), (8, 5, "w4a8", None)
    )


def test_calibration_beats_rounding_in_every_block_at_every_bit_width(model, seen_images, tmp_path):
    report = quept.calibrate(model, tmp_path / "artifact", data=seen_images, recipe=THOROUGH, device="cpu")
    for error in report.manifest.block_errors:
        assert error.calibrated < error.rounding, f"{error.block} at {error.bits} bits"


def test_layers_outside_the_blocks_have_one_bit_width(artifact, images):
    loaded = quept.load(artifact, 4)
    architecture = architecture_of(loaded.config.model_type)
    outer = {path: layer for path, layer in elastic_linears(loaded).items() if path in architecture.outer}
    assert sum(isinstance(layer, ElasticConv2d) for layer in outer.values()) == 1
    assert {(layer.bits, layer.activation_bits) for layer in outer.values()} == {(8, 8)}
    quept.set_precision(loaded, "w5a16")
    assert {(layer.bits, layer.activation_bits) for layer in outer.values()} == {(8, None)}
    plan = quept.precision_of(loaded)
    quept.set_precision(loaded, None)
    assert {(layer.bits, layer.activation_bits) for layer in outer.values()} == {(None, None)}
    quept.set_precision(loaded, plan)
    assert quept.precision_of(loaded) == plan
    # Their ranges were found: 8 bits change their results, and change them little.
    for layer in outer.values():
        quantizer = layer.input.quantizer
        assert quantizer.extremes[1] > quantizer.extremes[0]


@torch.no_grad()
def test_the_operands_of_attention_are_rounded_with_the_activations(artifact, images):
    loaded = quept.load(artifact)
    products = attention_operands(loaded)
    assert products
    quept.set_precision(loaded, "w16a4")
    assert {each.bits for each in products.values()} == {4}
    rounded, seen = logits(loaded, images), {}
    for path, each in products.items():
        each.bits = None
        seen[path] = logits(loaded, images)
        each.bits = 4
    assert all(not each.equal(rounded) for each in seen.values())
    for path, each in products.items():
        assert getattr(loaded.get_submodule(path), PRODUCTS) is each
        for quantizer in each.quantizers():
            low, high = quantizer.extremes
            assert low < high
        assert each.probabilities.extremes[0] == 0
        assert each.probabilities.extremes[1] <= 1


def test_sizes_count_layers_outside_at_their_own_bit_width(artifact):
    loaded = quept.load(artifact)
    for bits in (4, 8, FULL):
        quept.set_precision(loaded, None if bits == FULL else bits)
        assert packed_bytes(loaded, bits, torch.float32) == current_bytes(loaded, torch.float32)


def test_the_baseline_is_restored_after(artifact, images):
    loaded = quept.load(artifact, 4)
    before = logits(loaded, images)
    with rounded_to_nearest(loaded, 4):
        assert not logits(loaded, images).equal(before)
    assert logits(loaded, images).equal(before)


def test_the_original_is_not_touched(tiny_classifier, images, tmp_path):
    model = tiny_classifier("swin")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quept.calibrate(model, tmp_path / "artifact", data=images, recipe=QUICK, device="cpu")
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(value.equal(after[name]) for name, value in before.items())


@pytest.mark.parametrize("variant", ["vit", "swin"])
def test_a_resumed_run_gives_the_same_bytes(variant, tiny_classifier, images, tmp_path):
    model = tiny_classifier(variant)
    whole = quept.calibrate(model, tmp_path / "whole", data=images, recipe=QUICK, device="cpu").directory

    class Interrupt(quept.Progress):
        def start(self, blocks, steps):
            pass

        def step(self, block, step, loss):
            if block == 1:
                raise KeyboardInterrupt

        def note(self, text):
            pass

    with pytest.raises(KeyboardInterrupt):
        quept.calibrate(model, tmp_path / "cut", data=images, recipe=QUICK, device="cpu", progress=Interrupt())
    resumed = quept.calibrate(model, tmp_path / "cut", data=images, recipe=QUICK, device="cpu", resume=True).directory
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in resumed.iterdir())
    assert all((whole / name).read_bytes() == (resumed / name).read_bytes() for name in names)


def test_weights_alone_leave_attention_as_it_is(tiny_classifier, images, tmp_path):
    model = tiny_classifier("vit")
    recipe = QUICK.updated(activations={})
    loaded = quept.load(quept.calibrate(model, tmp_path / "weights", data=images, recipe=recipe).directory)
    assert not attention_operands(loaded)
    assert relative_error(logits(loaded, images), logits(model, images)) < 1e-4
    errors = []
    for bits in (8, 4):
        quept.set_precision(loaded, bits)
        errors.append(relative_error(logits(loaded, images), logits(model, images)))
    assert 0 < errors[0] < errors[1]


def test_without_epochs_ranges_are_placed_and_nothing_is_trained(tiny_classifier, images, tmp_path):
    model, errors = tiny_classifier("vit"), {}
    for start in ("min-max", "percentile", "search"):
        recipe = QUICK.updated(
            activations=QUICK.activations.updated(range_init=start),
            reconstruction=Reconstruction(epochs=0, clip_init="search" if start == "search" else 12.0),
        )
        report = quept.calibrate(model, tmp_path / start, data=images, recipe=recipe)
        tensors = load_file(report.directory / "elastic-00001-of-00002.safetensors")
        assert all(not tensor.any() for name, tensor in tensors.items() if name.endswith(".B"))
        errors[start] = [error.calibrated for error in report.manifest.block_errors if error.bits == 4]
    assert errors["search"] < errors["min-max"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (torch.zeros(4, 1, 12, 12), "3 channels"),
        (torch.zeros(4, 3, 8, 8), "12 x 12"),
        (torch.zeros(4, 3, 12), "(samples, channels, height, width)"),
        (torch.zeros(4, 3, 12, 12, dtype=torch.int64), "floats"),
        (torch.full((4, 3, 12, 12), float("nan")), "NaN"),
        ("nowhere.npz", "pass image_processor="),
        (3, "give a folder"),
    ],
)
def test_wrong_images_are_refused(data, words, tiny_classifier, tmp_path):
    with pytest.raises(InvalidInput, match=r"^[^\n]+$") as caught:
        quept.calibrate(tiny_classifier("vit"), tmp_path / "out", data=data, recipe=QUICK)
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_sequence_length_is_refused_for_images(tiny_classifier, images, tmp_path):
    with pytest.raises(InvalidInput, match="images have none"):
        quept.calibrate(tiny_classifier("vit"), tmp_path / "out", data=images, recipe=QUICK, sequence_length=8)


def test_the_manifest_names_the_settings(artifact):
    recipe = json.loads((artifact / "quept.json").read_text())["recipe"]
    assert recipe["outer_bits"] == 8
    assert recipe["activations"]["range"] == "tensor"
    assert recipe["activations"]["products"]
