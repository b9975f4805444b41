import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, DeiTConfig, SwinConfig, ViTConfig

from quept.data import load_images
from quept.errors import InvalidInput
from quept.evaluation import accuracy
from quept.models.images import open_image_processor

ASSETS = Path(__file__).parents[3] / "shared" / "assets"
GRAY = {"image_mean": [0.5], "image_std": [0.25], "do_convert_rgb": False}
COLOR = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 0.125]}


def write(folder, type_="ViTImageProcessor", **settings):
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": type_, **settings}))
    return folder


def picture(height, width, channels, seed=0):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def expected(image, mean, std, channels):
    array = np.array(image, dtype=np.float32).reshape(image.height, image.width, channels) / 255
    return torch.from_numpy((array - np.float32(mean)) / np.float32(std)).permute(2, 0, 1)


@pytest.mark.parametrize(("channels", "settings"), [(1, GRAY), (3, COLOR)])
def test_pixels_are_rescaled_and_normalized(tmp_path, channels, settings):
    write(tmp_path, do_resize=False, size={"height": 8, "width": 8}, **settings)
    processor = open_image_processor(tmp_path, ViTConfig(num_channels=channels, image_size=8, num_labels=4))
    assert (processor.channels, processor.size, processor.classes) == (channels, (8, 8), 4)
    images = [picture(8, 8, channels, seed) for seed in range(3)]
    pixels = processor.pixels(images)
    assert pixels.dtype == torch.float32
    assert pixels.shape == (3, channels, 8, 8)
    for found, image in zip(pixels, images, strict=True):
        torch.testing.assert_close(
            found, expected(image, settings["image_mean"], settings["image_std"], channels), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(("channels", "settings"), [(1, GRAY), (3, COLOR)])
def test_pictures_are_resized_as_pillow_does(tmp_path, channels, settings):
    write(tmp_path, do_resize=True, size={"height": 6, "width": 10}, resample=2, **settings)
    processor = open_image_processor(tmp_path, SwinConfig(num_channels=channels, image_size=99))
    assert processor.size == (6, 10)
    image = picture(20, 14, channels)
    reference = expected(
        image.resize((10, 6), Image.Resampling.BILINEAR), settings["image_mean"], settings["image_std"], channels
    )
    torch.testing.assert_close(processor.pixels([image])[0], reference, rtol=1e-5, atol=1e-5)


def test_the_size_is_that_of_the_crop(tmp_path):
    write(
        tmp_path,
        "DeiTImageProcessor",
        do_resize=True,
        size={"height": 12, "width": 12},
        do_center_crop=True,
        crop_size={"height": 8, "width": 8},
        **COLOR,
    )
    processor = open_image_processor(tmp_path, DeiTConfig(image_size=8))
    assert processor.size == (8, 8)
    assert processor.pixels([picture(30, 20, 3), picture(9, 9, 3)]).shape == (2, 3, 8, 8)


def test_a_size_that_depends_on_the_picture_is_left_open(tmp_path):
    write(tmp_path, "CLIPImageProcessor", do_resize=True, size={"shortest_edge": 12}, do_center_crop=False, **COLOR)
    assert open_image_processor(tmp_path, ViTConfig()).size is None


@pytest.mark.parametrize(("image_size", "size"), [(8, (8, 8)), ((6, 9), (6, 9)), (None, None)])
def test_without_resizing_the_size_is_the_models(tmp_path, image_size, size):
    write(tmp_path, do_resize=False, **COLOR)
    config = SimpleNamespace(image_size=image_size, num_labels=2, label2id={"a": 0, "b": 1})
    processor = open_image_processor(tmp_path, config)
    assert (processor.size, processor.channels, processor.label2id) == (size, 3, {"a": 0, "b": 1})


def test_torchvision_would_not_change_the_pixels(tmp_path):
    write(tmp_path, do_resize=True, size={"height": 6, "width": 6}, **COLOR)
    process = open_image_processor(tmp_path, ViTConfig()).process
    # Its class for Pillow has that name where there are two, and is the one without "Fast" where there were not yet.
    assert type(process).__name__ in ("ViTImageProcessorPil", "ViTImageProcessor")
    assert "torchvision" not in type(process).__module__
    assert "torchvision" not in sys.modules


def test_a_model_without_an_image_processor(tmp_path):
    with pytest.raises(InvalidInput, match=r"no image processor .*preprocessor_config\.json"):
        open_image_processor(tmp_path, ViTConfig())
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(InvalidInput, match="no image processor"):
        open_image_processor(tmp_path, ViTConfig())


def test_pillow_is_missing(tmp_path, monkeypatch):
    write(tmp_path, **COLOR)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InvalidInput, match=r"'pillow', which is not installed: .*quept\[vision\]"):
        open_image_processor(tmp_path, ViTConfig())


def test_a_picture_of_another_size_is_refused_by_name(tmp_path):
    write(tmp_path, do_resize=False, **GRAY)
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 9, 8), np.uint8), y=np.zeros(3, int))
    processor = open_image_processor(tmp_path, ViTConfig(num_channels=1, image_size=8))
    with pytest.raises(InvalidInput, match=r"'image 0 of a\.npz' .* 1 x 9 x 8 pixels, but the model takes 1 x 8 x 8"):
        next(load_images(tmp_path / "a.npz", processor).batches())


def test_standard_deviations_of_zero_are_told(tmp_path):
    write(tmp_path, do_resize=False, image_mean=[0.0], image_std=[0.0])
    np.savez(tmp_path / "a.npz", x=np.ones((1, 8, 8), np.uint8), y=np.zeros(1, int))
    processor = open_image_processor(tmp_path, ViTConfig(num_channels=1, image_size=8))
    with pytest.raises(InvalidInput, match=r"image_std|divide"):
        next(load_images(tmp_path / "a.npz", processor).batches())


@pytest.mark.assets
@pytest.mark.skipif(not ASSETS.is_dir(), reason="needs the real models and data in ../shared/assets")
def test_the_fashion_model_is_as_accurate_as_it_is_said_to_be():
    model = AutoModelForImageClassification.from_pretrained(ASSETS / "vit" / "fashion", local_files_only=True)
    source = load_images(
        ASSETS / "images" / "fashion.test.npz", open_image_processor(ASSETS / "vit" / "fashion", model.config)
    )
    found = accuracy(model, source.batches(100), total=source.count)
    assert found.images == 5000
    assert found.top1 == pytest.approx(0.9056, abs=0.0005)
