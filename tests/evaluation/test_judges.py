"""Judges measure what the functions below them measure, on the data that a task opens."""

from types import SimpleNamespace

import pytest
import torch

import quept
from quept.assembly import make_elastic
from quept.errors import InvalidInput
from quept.evaluation import evaluate_precisions
from quept.evaluation.judges import AccuracyJudge, DataOptions, Measured, PerplexityJudge
from quept.models import ARCHITECTURES, IMAGE_CLASSIFICATION, TEXT_GENERATION
from quept.models.task import Choice
from quept.precision import at_precision

LABELS = torch.arange(12) % 5


class Pictures:
    """An image source in memory, of which one image cannot be read."""

    count, skipped = 12, {"7.png": "truncated"}

    def __init__(self, pixels):
        self.pixels, self.sizes = pixels, []

    def batches(self, size, limit=None):
        self.sizes.append(size)
        return zip(self.pixels[:limit].split(size), LABELS[:limit].split(size), strict=True)


@pytest.fixture
def elastic(tiny_model, tiny_classifier):
    def make(build, variant):
        model = build(variant)
        recipe = quept.load_recipe("best").updated(adapter={"kind": "none"}, learned_rounding=(), store={})
        make_elastic(model, recipe)
        return model

    return SimpleNamespace(text=make(tiny_model, "llama"), images=make(tiny_classifier, "vit"))


def test_a_text_is_judged_by_its_perplexity_at_the_precision_in_force(elastic, windows):
    tokens, told = windows.flatten(), []
    judge = PerplexityJudge(tokens, 16, 8)
    assert (judge.metric, judge.amount) == ("perplexity", "192 tokens")
    with at_precision(elastic.text, 2):
        found = judge.quality(elastic.text, "plan 1", lambda *each: told.append(each))
        assert found == quept.perplexity(elastic.text, tokens, sequence_length=16, stride=8).value
    assert found != judge.quality(elastic.text)
    assert told[-1][0] == "plan 1"
    assert told[-1][1] == told[-1][2]
    both = judge.evaluate(elastic.text, [2], Measured(baseline=True))
    assert both == evaluate_precisions(elastic.text, tokens, [2], sequence_length=16, stride=8, baseline=True)
    plan = {"all": quept.PrecisionPlan(bits={"*": 3})}
    assert [row.precision for row in judge.evaluate(elastic.text, [2], Measured(plans=plan)).results] == ["2", "all"]
    assert judge.evaluate(elastic.text, [2], Measured(plans=plan, calibrated=False)).results == ()


def test_images_are_judged_by_their_error_in_percent(elastic, images):
    notes, source = [], Pictures(images)
    judge = AccuracyJudge(source, 5, 10, notes.append)
    assert (judge.metric, judge.amount, judge.total) == ("top-1 error (%)", "10 images", 10)
    found = judge.evaluate(elastic.images, [2], Measured())
    assert found.images == 10
    assert notes == ["1 images could not be read and were left out, 7.png for one."]
    with at_precision(elastic.images, 2):
        error = judge.quality(elastic.images)
    assert error == 100 * (1 - found.results[0].calibrated.accuracy.top1)
    assert set(source.sizes) == {5}
    assert judge.evaluate(elastic.images, [2], Measured(calibrated=False)).results == ()
    with pytest.raises(InvalidInput, match="leave the original out"):
        judge.evaluate(elastic.images, [2], Measured(original=elastic.images))


def test_a_source_of_unknown_length_has_no_total(images):
    source = Pictures(images)
    source.count = None
    assert (AccuracyJudge(source, limit=10).total, AccuracyJudge(source).amount) == (None, "images")


@pytest.mark.parametrize(
    ("limit", "manifest", "given", "expected"),
    [(64, None, None, 64), (None, None, None, 2048), (4096, None, None, 2048), (64, 48, None, 48), (64, 48, 16, 16)],
)
def test_windows_are_those_asked_for_or_calibrated_with_or_what_the_model_takes(
    limit, manifest, given, expected, tiny_tokenizer, tmp_path
):
    (tmp_path / "text.txt").write_text("so it goes " * 20)
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=limit))
    if manifest:
        data = SimpleNamespace(sequence_length=manifest)
        model.quept_manifest = SimpleNamespace(recipe=SimpleNamespace(data=data))
    options = DataOptions(sequence_length=given, stride=4, max_tokens=100)
    judge = TEXT_GENERATION.judge(model, tiny_tokenizer, tmp_path / "text.txt", options)
    assert (judge.sequence_length, judge.stride, judge.amount) == (expected, 4, "100 tokens")


def test_options_for_texts_are_refused_for_images():
    for name in ("sequence_length", "stride", "max_tokens"):
        with pytest.raises(InvalidInput, match=f"--{name.replace('_', '-')} 3 is not for a model that classifies"):
            IMAGE_CLASSIFICATION.judge(None, None, "nowhere.npz", DataOptions(**{name: 3}))
    for name in ("original", "kv_bits"):
        with pytest.raises(InvalidInput, match=name.replace("_", "-")):
            IMAGE_CLASSIFICATION.check_options(**{name: 4})
    TEXT_GENERATION.check_options(original="model", kv_bits=4, sequence_length=16)
    IMAGE_CLASSIFICATION.check_options(original=None, kv_bits=None)


def test_every_task_counts_the_predictions_that_its_models_make(tiny_model, tiny_classifier, windows, images):
    for task, model, samples in (
        (TEXT_GENERATION, tiny_model("llama"), windows),
        (IMAGE_CLASSIFICATION, tiny_classifier("vit"), images),
    ):
        assert ARCHITECTURES[model.config.model_type].task is task
        with torch.inference_mode():
            logits = model(**task.arguments(samples)).logits
        assert logits.shape[:-1].numel() == task.predictions(samples)
        assert logits.shape[-1] == task.classes(model.config)
        assert (logits.dim() == 3) == task.per_token
        recipe = task.fit(quept.load_recipe(task.default_recipe), model.config, samples, None, None, print)
        drawn = task.draw(samples, None, model.config, recipe, Choice())
        assert drawn.equal(samples)
        assert str(len(samples)) in task.describe_amount(recipe)
    assert (
        TEXT_GENERATION.describe_amount(recipe.updated(data={"samples": 8, "sequence_length": 24})) == "8 x 24 tokens"
    )
