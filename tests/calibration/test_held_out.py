"""What held-out samples decide: which of what was learned is kept, and that the rest runs as plain rounding."""

import pytest
import torch
from torch import Tensor

import quept
from quept.calibration.held_out import BASELINE, KEPT, WHOLE, Choice, decided, held_out_count, judged
from quept.calibration.progress import Silent
from quept.config import Activations, parse_bits
from quept.data.tokens import token_windows
from quept.evaluation.perplexity import eval_mode
from quept.layers import ElasticLinear
from quept.precision import at_precision, elastic_linears, rounded_to_nearest
from quept.recipes import load_recipe

RUINOUS = {"clipping_learning_rate": 2.0, "rounding_learning_rate": 5.0, "adapter_learning_rate": 0.07}
PLAIN = load_recipe("best")
TENSORS = PLAIN.updated(store={}, activations=Activations(bits=(4, 8), range="tensor"))


def ruinous(name: str, bits: str, **changes):
    """A recipe whose learning rates are a hundred times too high."""
    found = load_recipe(name).with_bits(parse_bits(bits))
    settings = found.reconstruction.updated(**RUINOUS, activation_learning_rate=1.0, epochs=2, batch_size=2)
    return found.updated(reconstruction=settings, **changes)


@torch.no_grad()
def outputs(model, samples: Tensor) -> Tensor:
    key = "input_ids" if samples.dtype == torch.int64 else "pixel_values"
    with eval_mode(model):
        return model(**{key: samples}).logits


def baseline(model, samples: Tensor, bits: int) -> Tensor:
    with rounded_to_nearest(model, bits):
        return outputs(model, samples)


@pytest.mark.parametrize("name", ["best", "paper", "weight-activation-best"])
def test_a_ruinous_training_of_a_language_model_ends_at_rounding(name, tiny_model, windows, tmp_path):
    model = tiny_model("llama")
    bits = "4,5,8" if "activation" in name else "2,5,8"
    notes: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    report = quept.calibrate(
        model, tmp_path / "a", data=windows, recipe=ruinous(name, bits), device="cpu", progress=Notes()
    )
    for each in report.manifest.prediction_errors:
        assert each.calibrated <= each.rounding
    kept = {error.weights for error in report.manifest.block_errors if error.bits == 5}
    assert kept == {"rounding"}
    assert any(text.startswith("At 5 bits what was learned does not predict held-out samples better") for text in notes)
    for packed in (False, True):
        loaded = quept.load(tmp_path / "a", 5, packed=packed, exact=True, integers=False)
        torch.testing.assert_close(outputs(loaded, windows), baseline(loaded, windows, 5), rtol=1e-3, atol=1e-4)
    quept.save(loaded, tmp_path / "again")
    again = quept.load(tmp_path / "again", 5, packed=True, exact=True, integers=False)
    assert outputs(again, windows).equal(outputs(loaded, windows))


def test_a_ruinous_training_of_an_image_classifier_ends_at_rounding(tiny_classifier, images, tmp_path):
    model = tiny_classifier("vit")
    recipe = ruinous("vision-best", "4,8", activations=load_recipe("vision-best").activations.updated(bits=(4, 8)))
    report = quept.calibrate(model, tmp_path / "a", data=images, recipe=recipe, device="cpu")
    assert all(each.calibrated <= each.rounding for each in report.manifest.prediction_errors)
    loaded = quept.load(tmp_path / "a", 4)
    decisions = [error for error in report.manifest.block_errors if error.bits == 4]
    assert {(error.weights, error.ranges) for error in decisions} == {("rounding", "whole")}
    torch.testing.assert_close(outputs(loaded, images), baseline(loaded, images, 4), rtol=1e-4, atol=1e-5)
    assert "rounding" in {each.kept for each in quept.info(tmp_path / "a").precisions}


def test_a_good_training_is_kept(tiny_model, windows, tmp_path):
    recipe = load_recipe("best").with_bits(parse_bits("2,8"))
    report = quept.calibrate(tiny_model("llama"), tmp_path / "a", data=windows, recipe=recipe, device="cpu")
    (low,) = (each for each in report.manifest.prediction_errors if each.bits == 2)
    assert low.calibrated < low.rounding
    assert "learned" in {error.weights for error in report.manifest.block_errors if error.bits == 2}


def test_the_baseline_of_scaled_columns_is_no_codes(tiny_model, windows, tmp_path):
    report = quept.calibrate(
        tiny_model("llama"), tmp_path / "a", data=windows, recipe=ruinous("paper", "3,8"), device="cpu"
    )
    loaded = quept.load(tmp_path / "a", 3, packed=True, exact=True)
    rounded = [layer for layer in elastic_linears(loaded).values() if 3 in layer.rounded_bits]
    assert rounded, [error for error in report.manifest.block_errors]
    for layer in rounded:
        assert isinstance(layer, ElasticLinear)
        assert not layer.has_codes(3)
        assert layer.derive(3).equal(layer.nearest(3))
        with pytest.raises(AssertionError):
            layer.codes(3)


def test_learned_ranges_have_to_win_clearly():
    near = {KEPT: 0.95, WHOLE: 1.0, BASELINE: 2.0}
    clear = {KEPT: 0.5, WHOLE: 1.0, BASELINE: 2.0}
    found = {error.bits: error for error in decided("b", {8: near, 4: clear}, TENSORS)}
    assert (found[8].weights, found[8].ranges, found[8].calibrated) == ("learned", "whole", 1.0)
    assert (found[4].weights, found[4].ranges, found[4].calibrated) == ("learned", "learned", 0.5)


def test_bit_widths_that_share_ranges_are_decided_together():
    shared = TENSORS.updated(activations=Activations(bits=(8,), range="tensor"))
    errors = {4: {KEPT: 0.5, WHOLE: 1.0, BASELINE: 1.0}, 2: {KEPT: 1.1, WHOLE: 1.0, BASELINE: 0.99}}
    found = {error.bits: error for error in decided("b", errors, shared)}
    assert {error.ranges for error in found.values()} == {"learned"}
    assert {error.weights for error in found.values()} == {"learned"}, "rounding runs on whole ranges"


def test_weights_alone_are_kept_where_they_are_no_worse():
    rounding = Choice(rounded=True, whole=False)
    found = {e.bits: e for e in decided("b", {4: {KEPT: 2.0, rounding: 1.0}, 8: {KEPT: 1.0, rounding: 1.0}}, PLAIN)}
    assert (found[4].weights, found[4].ranges, found[4].calibrated) == ("rounding", "learned", 1.0)
    assert found[8].weights == "learned"


def samples(*errors: float) -> Tensor:
    return torch.tensor(errors, dtype=torch.float64)


def test_the_predictions_have_the_last_word():
    blocks = decided(
        "b", {4: {KEPT: 0.5, WHOLE: 0.9, BASELINE: 1.0}, 8: {KEPT: 0.5, WHOLE: 0.9, BASELINE: 1.0}}, TENSORS
    )
    predictions = {
        4: {KEPT: samples(1.2, 1.2), WHOLE: samples(1.1, 1.1), BASELINE: samples(1, 1)},
        8: {KEPT: samples(0.5, 0.4), WHOLE: samples(0.4, 0.4), BASELINE: samples(1, 1)},
    }
    judgement = judged(blocks, predictions, TENSORS)
    found = {error.bits: error for error in judgement.blocks}
    assert (found[4].weights, found[4].ranges, found[4].calibrated) == ("rounding", "whole", 1.0)
    assert (found[8].weights, found[8].ranges) == ("learned", "whole")
    assert {each.bits: each.calibrated for each in judgement.predictions} == {4: 1.0, 8: pytest.approx(0.4)}
    (note,) = judgement.notes()
    assert note.startswith("At 4 bits what was learned does not predict")


@pytest.mark.parametrize(
    ("ratios", "weights"),
    [
        ([0.9, 0.8, 0.9, 0.85], "learned"),  # a little, everywhere
        ([0.1, 3.0, 0.2, 2.5], "rounding"),  # much better and much worse: chance
        ([1.1, 1.05, 1.1, 0.0001], "rounding"),  # one sample alone
        ([1.0, 1.0, 1.0, 1.0], "learned"),  # the same
    ],
)
def test_what_is_better_by_chance_is_not_kept(ratios, weights):
    blocks = decided("b", {4: {KEPT: 0.5, BASELINE: 1.0}}, TENSORS)
    scale = samples(1.0, 0.01, 0.1, 100.0)
    judgement = judged(blocks, {4: {KEPT: samples(*ratios) * scale, BASELINE: scale}}, TENSORS)
    assert judgement.blocks[0].weights == weights


def test_held_out_samples_come_on_top_where_there_are_more(tiny_tokenizer, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{number} is a number. " for number in range(400)), encoding="utf-8")
    draw = {"samples": 16, "sequence_length": 16, "seed": 0}
    windows = token_windows(text, tiny_tokenizer, **draw)
    with_spare = token_windows(text, tiny_tokenizer, spare=2, **draw)
    assert with_spare[:16].equal(windows), "what trains does not depend on what is held out"
    trained = {tuple(window) for window in windows.tolist()}
    assert not trained & {tuple(window) for window in with_spare[16:].tolist()}


def test_the_number_of_held_out_samples():
    assert held_out_count(128, 2048) == 8
    assert held_out_count(128, 256) == 16
    assert held_out_count(1024, 50) == 128
    assert held_out_count(1, 50) == 1


def test_what_is_held_out_of_few_samples_is_said(tiny_model, windows, tmp_path):
    notes: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    recipe = load_recipe("best").with_bits(parse_bits("4,8"))
    quick = recipe.updated(reconstruction=recipe.reconstruction.updated(epochs=0))
    for count, expected in ((8, "The data has 8 token windows: 1 of them judge"), (1, "There is a single sample")):
        quept.calibrate(
            tiny_model("llama"),
            tmp_path / str(count),
            data=windows[:count],
            recipe=quick,
            device="cpu",
            progress=Notes(),
        )
        assert any(expected in text for text in notes), notes


def test_at_precision_holds_what_was_decided(tiny_model, windows, tmp_path):
    quept.calibrate(tiny_model("llama"), tmp_path / "a", data=windows, recipe=ruinous("best", "5,8"), device="cpu")
    loaded = quept.load(tmp_path / "a")
    with at_precision(loaded, 5):
        inside = outputs(loaded, windows)
    assert inside.equal(baseline(loaded, windows, 5))


def test_all_that_was_learned_can_be_kept():
    recipe = TENSORS.updated(reconstruction=TENSORS.reconstruction.updated(keep="learned"))
    errors = {4: {KEPT: 2.0, WHOLE: 0.9, BASELINE: 1.0}}
    predictions = {4: {way: samples(error) for way, error in errors[4].items()}}
    (block,) = judged(decided("b", errors, recipe), predictions, recipe).blocks
    assert (block.weights, block.ranges, block.calibrated) == ("learned", "learned", 2.0)
