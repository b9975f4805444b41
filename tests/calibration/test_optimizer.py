"""How rounding offsets move."""

import pytest
import torch

from quept.calibration.optimizer import REACH, RoundingOptimizer

RATE = 0.01


def moved(*gradients: torch.Tensor) -> list[torch.Tensor]:
    """Where an offset that starts at zero is after each of these gradients."""
    offset = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer, places = RoundingOptimizer([{"params": [offset], "lr": RATE}]), []
    for gradient in gradients:
        offset.grad = gradient.clone()
        optimizer.step()
        places.append(offset.detach().clone())
    return places


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e6])
def test_the_first_step_is_the_gradients_sign_whatever_its_size(size):
    gradient = size * torch.tensor([3.0, -0.5, 0.0])
    torch.testing.assert_close(moved(gradient)[0], torch.tensor([-RATE, RATE, 0.0]))


def test_a_vanishing_gradient_moves_nothing_far():
    assert moved(torch.tensor([1e-30]))[0].abs() <= RATE


def test_weights_on_which_batches_agree_move_further():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(30, 1000, generator=generator)
    *_, agreed = moved(*(noise * 0.1 + 1))
    *_, argued = moved(*noise)
    assert agreed.mean() == pytest.approx(-30 * RATE, rel=0.02)
    assert argued.abs().mean() < 0.2 * agreed.abs().mean()


def test_the_step_does_not_depend_on_the_losss_scale():
    gradients = torch.randn(10, 50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(moved(*(1e-6 * gradients))[-1], moved(*gradients)[-1])


def test_offsets_stay_within_reach_and_without_a_gradient_where_they_are():
    constant = [torch.ones(3)] * 80
    assert torch.equal(moved(*constant)[-1], torch.full((3,), -REACH))
    still = torch.nn.Parameter(torch.full((2,), 0.25))
    RoundingOptimizer([{"params": [still], "lr": RATE}]).step()
    assert torch.equal(still.detach(), torch.full((2,), 0.25))
