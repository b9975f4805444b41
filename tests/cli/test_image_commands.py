"""Image classifiers on the command line: results, JSON, and one paragraph for every mistake."""

import json
import shutil

import numpy as np
import pytest
from command_line import run
from PIL import Image

import quept
from quept.precision import attention_operands

SMALL = ("--samples", "12", "--epochs", "1", "--batch-size", "6", "--quiet")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_classifier):
    """A model with its image processor, images in an array and in folders, and an artifact."""
    folder = tmp_path_factory.mktemp("images")
    tiny_classifier("vit").save_pretrained(folder / "model")
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": False,
        "size": {"height": 12, "width": 12},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
    labels = np.arange(20) % 5
    np.savez(folder / "images.npz", x=pictures, y=labels)
    np.savez(folder / "labels.npz", x=pictures, y=labels + 3)
    np.savez(folder / "sizes.npz", x=generator.integers(0, 256, (20, 9, 9, 3), dtype=np.uint8), y=labels)
    np.savez(folder / "gray.npz", x=generator.integers(0, 256, (20, 12, 12), dtype=np.uint8), y=labels)
    for picture, label, number in zip(pictures, labels, range(20), strict=True):
        name = folder / "folders" / f"LABEL_{label}" / f"{number}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(name)
    shutil.copytree(folder / "folders", folder / "damaged")
    (folder / "damaged" / "LABEL_0" / "0.png").write_bytes(b"no picture")
    data = ("--data", folder / "images.npz")
    assert run("calibrate", folder / "model", "-o", folder / "artifact", *data, *SMALL) == 0
    return folder


def test_the_default_recipe_is_the_one_for_images(workplace):
    manifest = json.loads((workplace / "artifact" / "quept.json").read_text())
    assert manifest["recipe"]["name"] == "vision-best"
    assert attention_operands(quept.load(workplace / "artifact", 4))


def test_evaluate_writes_accuracy_as_json_table_and_plot(workplace, tmp_path, capfd):
    file = tmp_path / "result.json"
    arguments = ("evaluate", workplace / "artifact", "--data", workplace / "images.npz", "--baseline")
    assert run(*arguments, "--json", file, "--plot", tmp_path / "plot.html") == 0
    result = json.loads(file.read_text())
    assert result["metric"] == "top-1 accuracy"
    assert result["images"] == 20
    assert [row["precision"] for row in result["results"]] == ["4", "5", "6", "7", "8"]
    for row in result["results"]:
        for of in (row["calibrated"], row["baseline"]):
            assert of["accuracy"]["top1"] == pytest.approx(result["full_precision"]["top1"] - of["lost"])
    sizes = [row["bytes"] for row in result["results"]]
    assert sizes == sorted(sizes)
    assert f"{100 * result['full_precision']['top1']:.2f}" in capfd.readouterr().out
    assert "top-1 error" in (tmp_path / "plot.html").read_text()


def test_folders_of_images_are_the_same_as_arrays(workplace, tmp_path):
    found = []
    for data in ("images.npz", "folders"):
        file = tmp_path / f"{data}.json"
        arguments = ("evaluate", workplace / "model", "--data", workplace / data, "--quiet", "--json", file)
        assert run(*arguments) == 0
        found.append(json.loads(file.read_text())["full_precision"])
    assert found[0] == found[1]


def test_images_that_cannot_be_read_are_counted_or_with_strict_an_error(workplace, tmp_path, capfd):
    arguments = ("evaluate", workplace / "artifact", "--data", workplace / "damaged", "--bits", "8")
    file = tmp_path / "result.json"
    assert run(*arguments, "--json", file) == 0
    assert json.loads(file.read_text())["images"] == 19
    assert "1 images could not be read" in capfd.readouterr().err
    assert run(*arguments, "--strict") == 2
    assert "0.png" in capfd.readouterr().err
    calibrating = ("calibrate", workplace / "model", "-o", tmp_path / "out", "--data", workplace / "damaged")
    assert run(*calibrating, *SMALL, "--samples", "20") == 2
    assert "could not be read" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_info_tells_what_is_rounded_and_how(workplace, capfd):
    assert run("info", workplace / "artifact") == 0
    shown = capfd.readouterr().out
    for words in ("12 images", "one learned range per tensor", "probabilities", "reparameterized norms", "classifier"):
        assert words in shown


MISTAKES = {
    "another size": ("calibrate {w}/model -o {out} --data {w}/sizes.npz --samples 12", 2, "12 x 12"),
    "labels out of range": ("evaluate {w}/artifact --data {w}/labels.npz", 2, "classes"),
    "fewer images than samples": ("calibrate {w}/model -o {out} --data {w}/images.npz --samples 21", 2, "20"),
    "no such data": ("calibrate {w}/model -o {out} --data {w}/nothing.npz", 2, "nothing.npz"),
    "a text": ("calibrate {w}/model -o {out} --data wikitext2", 2, "wikitext2"),
    "a length": ("calibrate {w}/model -o {out} --data {w}/images.npz --sequence-length 8", 2, "images have none"),
    "tokens": ("evaluate {w}/artifact --data {w}/images.npz --max-tokens 8", 2, "--max-tokens"),
    "keys and values": ("evaluate {w}/artifact --data {w}/images.npz --kv-bits 4", 2, "--kv-bits"),
    "generation": ("generate {w}/artifact --prompt a", 2, "classifies images"),
    "no images wanted": ("evaluate {w}/artifact --data {w}/images.npz --max-images 0", 2, "1 or more"),
    "a width that is not there": ("evaluate {w}/artifact --data {w}/images.npz --bits 2", 2, "2"),
    "no processor": ("calibrate {w}/bare -o {out} --data {w}/images.npz", 2, "preprocessor_config.json"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_paragraph_without_traceback_and_leaves_nothing(workplace, tmp_path, capfd, name):
    if not (workplace / "bare").exists():
        shutil.copytree(workplace / "model", workplace / "bare")
        (workplace / "bare" / "preprocessor_config.json").unlink()
    template, code, told = MISTAKES[name]
    arguments = template.format(w=workplace, out=tmp_path / "out").split(" ")
    capfd.readouterr()
    assert run(*arguments) == code
    shown = capfd.readouterr().err.strip()
    assert shown.startswith("error:")
    assert told in shown
    assert "Traceback" not in shown
    assert "\n\n" not in shown
    assert list(tmp_path.iterdir()) == []


def test_grayscale_images_fit_a_model_of_three_channels(workplace, tmp_path):
    assert run("evaluate", workplace / "model", "--data", workplace / "gray.npz", "--quiet") == 0


def test_the_vision_demo_shows_its_table_and_leaves_a_working_artifact(tmp_path, capfd, monkeypatch):
    import quept.calibration

    full = quept.calibration.calibrate
    recipe = quept.load_recipe("demo-vision")
    short = recipe.updated(reconstruction=recipe.reconstruction.updated(epochs=1))
    monkeypatch.setattr(
        quept.calibration,
        "calibrate",
        lambda *args, **options: full(*args, **{**options, "recipe": short, "samples": 32}),
    )
    output = tmp_path / "demo"
    assert run("demo", "vision", "--output", output, "--json", tmp_path / "demo.json") == 0
    result = json.loads((tmp_path / "demo.json").read_text())
    assert [row["bits"] for row in result["results"]] == [2, 3, 4, 5, 6, 7, 8]
    assert result["full_precision"]["top1"] > 0.95
    assert "built-in vision transformer" in capfd.readouterr().out
    assert "<svg" in (output / "accuracy.html").read_text()
    quept.load(output / "artifact", 4)
    assert run("demo", "sound", "--output", output) == 2
    assert "language, vision" in capfd.readouterr().err
