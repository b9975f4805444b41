"""Rounding with error feedback."""

import torch

from quept.formats.eight_bit import round_master
from quept.numerics.feedback import round_with_feedback


def correlated(tokens: int, inputs: int, seed: int) -> torch.Tensor:
    """Inputs of which few directions matter, as in a model."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(inputs, inputs, generator=torch.Generator().manual_seed(99))
    return torch.randn(tokens, inputs, generator=generator) * torch.logspace(0, -2, inputs) @ directions


def test_outputs_of_unseen_inputs_err_less_than_with_nearest_codes():
    weight = torch.randn(40, 200, generator=torch.Generator().manual_seed(0))
    seen, unseen = correlated(2000, 200, 1), correlated(500, 200, 2)
    scale = weight.abs().amax(1, keepdim=True) / 7
    codes = round_with_feedback(weight, scale, 7, seen)
    assert codes.equal(codes.round())
    assert int(codes.abs().max()) <= 7
    nearest = (weight / scale).round()
    errors = [((each * scale - weight) @ unseen.T).square().mean() for each in (codes, nearest)]
    assert errors[0] < 0.5 * errors[1]


def test_without_correlations_codes_are_the_nearest():
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    scale = weight.abs().amax(1, keepdim=True) / 127
    codes = round_with_feedback(weight, scale, 127, torch.eye(32).repeat(4, 1))
    assert codes.equal((weight / scale).round())


def test_a_master_takes_feedback_only_where_it_helps_on_rows_it_has_not_seen():
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    rows = correlated(1000, 96, 3)
    plain, scale = round_master(weight, 96)
    codes, same = round_master(weight, 96, rows)
    assert same.equal(scale)
    fresh = correlated(300, 96, 4)
    step = scale.float()
    errors = [((each.float() * step - weight) @ fresh.T).square().mean() for each in (codes, plain)]
    assert errors[0] < errors[1]
    few = torch.zeros(6, 96)
    few[::2] = torch.randn(3, 96, generator=torch.Generator().manual_seed(5))
    few[1::2] = torch.randn(3, 96, generator=torch.Generator().manual_seed(6)) * 100
    misled, _ = round_master(weight, 96, few)
    unseen = [((each.float() * step - weight) @ few[1::2].T).square().sum() for each in (misled, plain)]
    assert unseen[0] <= unseen[1]
