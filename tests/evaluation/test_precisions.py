"""Several precisions beside the model that was calibrated."""

import copy

import pytest
import torch

import quept
from quept.assembly import make_elastic
from quept.config import Granularity
from quept.errors import InvalidInput
from quept.evaluation import evaluate_precisions, precisions
from quept.evaluation.divergence import divergence
from quept.precision import at_precision, rounded_to_nearest

WINDOW = 12


@pytest.fixture(scope="module")
def opened(tiny_model, windows, tmp_path_factory):
    """The original, a calibrated model with an 8-bit master, the original made elastic, and tokens."""
    best = quept.load_recipe("best").with_bits((2, 4, 8))
    quick = best.reconstruction.updated(epochs=2, batch_size=4)
    recipe = best.updated(granularity=Granularity(group_size=16, grouped_bits=(2, 4)), reconstruction=quick)
    directory = tmp_path_factory.mktemp("precisions") / "out"
    original = tiny_model("llama")
    quept.calibrate(tiny_model("llama"), directory, data=windows, recipe=recipe, compiled=False)
    roundable = copy.deepcopy(original)
    make_elastic(roundable, recipe.updated(adapter={"kind": "none"}, learned_rounding=(), store={}))
    return original, quept.load(directory, packed=False), roundable, windows.flatten()[:120]


def kl(original, model, tokens) -> float:
    def logits(of):
        return lambda ids: of(input_ids=ids, use_cache=False).logits

    return divergence(logits(original), logits(model), tokens, sequence_length=WINDOW).kl


@pytest.mark.parametrize("kept", [0, 40_000, 1 << 30])
def test_divergences_are_those_from_the_original(kept, opened, monkeypatch):
    """Also where the original's logits, 4 x 12 x 96 floats a batch and more, are kept in part or not at all."""
    original, model, roundable, tokens = opened
    monkeypatch.setattr(precisions, "KEPT_LOGITS", kept)
    told = []
    found = evaluate_precisions(
        model,
        tokens,
        (2, 8),
        sequence_length=WINDOW,
        baseline=True,
        original=original,
        roundable=roundable,
        progress=lambda *each: told.append(each),
    )
    assert found.original == pytest.approx(quept.perplexity(original, tokens, sequence_length=WINDOW).value)
    with at_precision(model, None):
        assert found.full_precision_kl == pytest.approx(kl(original, model, tokens), rel=1e-6)
    for row in found.results:
        bits = int(row.bits)
        with at_precision(model, bits):
            assert row.kl == pytest.approx(kl(original, model, tokens), rel=1e-6)
        with rounded_to_nearest(roundable, bits):
            assert row.baseline_kl == pytest.approx(kl(original, roundable, tokens), rel=1e-6)
    # The master was rounded once, the baseline is the original's own rounding.
    assert found.results[1].kl == found.full_precision_kl
    assert found.results[1].baseline_kl != found.full_precision_kl
    done, total = zip(*((done, total) for _, done, total in told), strict=True)
    assert list(done) == sorted(done)
    assert set(total) == {done[-1]} == {6 * 10}  # the original, the master, two widths twice


def test_an_original_of_another_vocabulary_is_refused(opened, tiny_model):
    _, model, _, tokens = opened
    with pytest.raises(InvalidInput, match="96"):
        evaluate_precisions(model, tokens, (2,), sequence_length=WINDOW, original=tiny_model("llama", vocab_size=64))


def test_without_an_original_nothing_is_compared(opened):
    _, model, _, tokens = opened
    found = evaluate_precisions(model, tokens, (2,), sequence_length=WINDOW)
    assert found.original is found.full_precision_kl is found.results[0].kl is None
    assert torch.isfinite(torch.tensor(found.full_precision))
