"""Every divergence is the same quantity: in float64, row by row, and with a gradient."""

import pytest
import torch
from torch.nn import functional as F

from quept.numerics import divergence
from quept.numerics.divergence import kl_terms, row_kl, total_kl, trained_kl

ROWS, CLASSES = 9, 13


def drawn(seed):
    return 3 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(seed))


def expected(reduction):
    p, q = (drawn(seed).double().log_softmax(-1) for seed in (1, 2))
    return F.kl_div(q, p, log_target=True, reduction=reduction)


def test_all_agree_with_the_library():
    given, wanted = drawn(2), drawn(1)
    assert total_kl(wanted, given) == pytest.approx(float(expected("sum")), rel=1e-12)
    torch.testing.assert_close(row_kl(wanted, given), expected("none").sum(-1).float(), rtol=1e-5, atol=1e-6)
    assert float(trained_kl(given, wanted.log_softmax(-1))) == pytest.approx(float(expected("sum")), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_the_gradient_is_that_of_the_divergence_however_rows_are_divided(rows, monkeypatch):
    monkeypatch.setattr(divergence, "TRAINED_IN_CACHE", rows * CLASSES)
    logits, log_p = drawn(2).requires_grad_(True), drawn(1).log_softmax(-1)
    (found,) = torch.autograd.grad(2 * trained_kl(logits, log_p), logits)
    (plain,) = torch.autograd.grad(2 * (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(), logits)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)


def test_known_probabilities_change_no_bit_and_arguments_stay():
    log_p, log_q = drawn(1).log_softmax(-1), drawn(2).log_softmax(-1)
    before = log_p.clone(), log_q.clone()
    assert kl_terms(log_p, log_q).equal(kl_terms(log_p, log_q, log_p.exp()))
    assert kl_terms(log_p, log_q).equal(log_p.exp() * (log_p - log_q))
    assert log_p.equal(before[0])
    assert log_q.equal(before[1])
