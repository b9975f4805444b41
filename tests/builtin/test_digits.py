"""The built-in vision model and its images."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification, ViTForImageClassification

# Not `from quept.builtin import test_images_path`: pytest would collect that function as a test.
from quept import builtin, load_recipe
from quept.data import load_images
from quept.evaluation import evaluate_accuracy
from quept.layers.replace import elastic_like, replace_linears
from quept.models.images import open_image_processor

MAX_PACKAGE_DATA = 1_000_000
CLASSES = 10


def arrays(path):
    with np.load(path, allow_pickle=False) as file:
        return file["x"], file["y"]


@pytest.fixture(scope="module")
def model():
    path = builtin.vision_model_path()
    return AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture(scope="module")
def processor(model):
    return open_image_processor(builtin.vision_model_path(), model.config)


@pytest.fixture(scope="module")
def evaluation(processor):
    """Accuracy on the held-out images, with the blocks' weights rounded to nearest."""
    path = builtin.vision_model_path()
    model = AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    recipe = load_recipe("best").updated(adapter={"kind": "none"}, learned_rounding=(), store={})
    linears = [name for name, module in model.vit.named_modules() if isinstance(module, torch.nn.Linear)]
    replace_linears(model.vit, "vit", dict.fromkeys(linears, recipe.weight_spec), {}, elastic_like)
    source = load_images(builtin.test_images_path(), processor)
    return evaluate_accuracy(model, source.batches(100), (2, 8), calibrated=False, baseline=True)


def test_package_data_stay_small():
    folder = builtin.vision_model_path().parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MAX_PACKAGE_DATA


def test_images_are_apart_from_each_other_and_of_all_classes():
    parts = [arrays(path) for path in (builtin.calibration_images_path(), builtin.test_images_path())]
    for images, labels in parts:
        assert images.dtype == np.uint8
        assert images.shape == (len(labels), 8, 8)
        assert images.max() == 255
        assert np.bincount(labels, minlength=CLASSES).min() >= len(labels) / CLASSES / 2
    calibration, test = ({image.tobytes() for image in images} for images, _ in parts)
    assert not calibration & test


def test_a_sample_for_calibration_can_be_drawn(processor):
    sample = load_images(builtin.calibration_images_path(), processor).take(256, seed=0)
    assert sample.pixels.shape == (256, 1, 8, 8)
    assert (float(sample.pixels.min()), float(sample.pixels.max())) == (-1, 1)


def test_model_is_a_small_vision_transformer_of_one_channel(model, processor):
    assert isinstance(model, ViTForImageClassification)
    assert (processor.channels, processor.size, processor.classes) == (1, (8, 8), CLASSES)
    assert processor.label2id == {str(digit): digit for digit in range(CLASSES)}
    assert model.config.intermediate_size % 128 != 0


def test_model_knows_held_out_digits(evaluation):
    assert evaluation.images == 500
    assert evaluation.full_precision.top1 >= 0.97


def test_two_bits_hurt_the_model_and_eight_cost_nothing(evaluation):
    two, eight = (result.baseline for result in evaluation.results)
    assert two.lost > 0.03
    assert two.lost > 3 * two.lost_error
    assert two.kl > 100 * eight.kl
    assert abs(eight.lost) <= 0.002
