"""On real models: what calibration is for."""

from pathlib import Path

import pytest
import torch

import quept
from quept.data import load_images, token_stream
from quept.evaluation import evaluate_accuracy, evaluate_precisions
from quept.models import open_model
from quept.models.checkpoint import open_tokenizer
from quept.models.images import open_image_processor

ASSETS = Path(__file__).parents[2] / "shared" / "assets"

pytestmark = [
    pytest.mark.assets,
    pytest.mark.skipif(not ASSETS.is_dir(), reason="needs the real models and data in ../shared/assets"),
]


def test_stories260k_keeps_its_language_at_every_bit_width(tmp_path):
    recipe = quept.load_recipe("paper")
    recipe = recipe.updated(reconstruction=recipe.reconstruction.updated(epochs=4))
    quept.calibrate(
        ASSETS / "lm" / "stories260K",
        tmp_path / "out",
        data=ASSETS / "text" / "tinystories.calibration.txt",
        recipe=recipe,
        samples=128,
        sequence_length=256,
    )
    model = quept.load(tmp_path / "out")
    tokens = token_stream(ASSETS / "text" / "tinystories.test.txt", open_tokenizer(tmp_path / "out"), max_tokens=12_000)
    result = evaluate_precisions(model, tokens, recipe.bits, sequence_length=256, baseline=True)
    share = {row.bits: row.perplexity / row.baseline for row in result.results}
    assert share[2] <= 1 / 5
    assert share[3] <= 0.75
    # As published, the method is no better than rounding from 4 bits on, at 4 by seed and machine up to 3 % worse.
    assert share[4] <= 1.05
    assert all(share[bits] <= 1.03 for bits in (5, 6, 7, 8))

    original = open_model(ASSETS / "lm" / "stories260K")
    with torch.inference_mode():
        assert torch.equal(model(tokens[None, :256]).logits, original(tokens[None, :256]).logits)


def test_stories260k_keeps_its_language_with_rounded_activations(tmp_path):
    recipe = quept.load_recipe("weight-activation-best").with_bits((4, 6, 8))
    quept.calibrate(
        ASSETS / "lm" / "stories260K",
        tmp_path / "out",
        data=ASSETS / "text" / "tinystories.calibration.txt",
        recipe=recipe,
        samples=24,
        sequence_length=256,
        compiled=False,
    )
    model = quept.load(tmp_path / "out")
    tokens = token_stream(ASSETS / "text" / "tinystories.test.txt", open_tokenizer(tmp_path / "out"), max_tokens=12_000)
    wanted = (4, 6, 8, "w4a8", "w8a8kv8")
    result = evaluate_precisions(model, tokens, wanted, sequence_length=256, baseline=True)
    found = {row.precision: row for row in result.results}
    rounding = found["4"].baseline - result.full_precision
    assert found["4"].perplexity - result.full_precision < 0.65 * rounding
    assert found["6"].perplexity < 1.002 * found["6"].baseline
    assert found["8"].perplexity < 1.005 * result.full_precision
    assert found["w8a8kv8"].perplexity < 1.005 * result.full_precision
    assert found["6"].perplexity < found["w4a8"].perplexity < found["4"].perplexity


def test_the_fashion_vit_keeps_its_predictions_at_every_bit_width(tmp_path):
    recipe = quept.load_recipe("vision-best").with_bits((3, 4, 8))
    images = ASSETS / "images"
    quept.calibrate(
        ASSETS / "vit" / "fashion",
        tmp_path / "out",
        data=images / "fashion.calibration.npz",
        recipe=recipe.updated(reconstruction=recipe.reconstruction.updated(epochs=3)),
        samples=192,
        compiled=False,
    )
    model = quept.load(tmp_path / "out")
    test = load_images(images / "fashion.test.npz", open_image_processor(tmp_path / "out", model.config))
    result = evaluate_accuracy(model, test.batches(250, limit=1000), recipe.bits, baseline=True)
    found = {row.bits: (row.calibrated, row.baseline) for row in result.results}
    assert result.full_precision.top1 > 0.88
    for bits, most in ((3, 0.04), (4, 0.02), (8, 0.005)):
        calibrated, baseline = found[bits]
        assert calibrated.lost < most
        assert bits == 8 or calibrated.kl < baseline.kl / 2
