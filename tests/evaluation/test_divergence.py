import pytest
import torch
from torch.nn import functional as F

from quept.errors import InvalidInput
from quept.evaluation import divergence
from quept.evaluation.divergence import Divergence

VOCABULARY, LENGTH = 11, 6
TOKENS = torch.randint(VOCABULARY, (45,), generator=torch.Generator().manual_seed(0))


def table(seed, scale=1.0):
    """A bigram model: the logits depend on the token alone."""
    weights = scale * torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return lambda ids: weights[ids]


def test_it_is_the_mean_divergence_over_all_positions_of_whole_windows():
    reference, model = table(1), table(2)
    ids = TOKENS[: 45 // LENGTH * LENGTH]
    p, q = reference(ids).log_softmax(-1), model(ids).log_softmax(-1)
    found = divergence(reference, model, TOKENS, sequence_length=LENGTH)
    assert found.tokens == len(ids) == 42
    assert found.kl == pytest.approx(float(F.kl_div(q, p, log_target=True, reduction="batchmean")), rel=1e-5)
    assert found.top1_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))


def test_a_model_does_not_diverge_from_itself_and_diverges_in_one_direction():
    one, other = table(1), table(2, scale=3.0)
    assert divergence(one, one, TOKENS, sequence_length=LENGTH) == Divergence(pytest.approx(0, abs=1e-7), 1.0, 42)
    there, back = (divergence(*pair, TOKENS, sequence_length=LENGTH).kl for pair in ((one, other), (other, one)))
    assert there != pytest.approx(back, rel=0.01)


@pytest.mark.parametrize(("batch", "chunk"), [(1, 1), (2, 7), (100, 1 << 24)])
def test_batches_and_chunks_do_not_matter(batch, chunk, monkeypatch):
    expected = divergence(table(1), table(2), TOKENS, sequence_length=LENGTH)
    monkeypatch.setattr("quept.numerics.divergence.LOGITS_IN_CACHE", chunk * VOCABULARY)
    seen = []
    found = divergence(
        table(1), table(2), TOKENS, sequence_length=LENGTH, batch_size=batch, progress=lambda *at: seen.append(at)
    )
    assert found.kl == pytest.approx(expected.kl, rel=1e-6)
    assert found.top1_agreement == expected.top1_agreement
    assert seen[-1] == (7, 7)


def test_too_short_a_text_is_refused():
    with pytest.raises(InvalidInput, match="45 tokens"):
        divergence(table(1), table(2), TOKENS, sequence_length=46)
