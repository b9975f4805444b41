"""Rounding per token: grid, gradients, ranges."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quept.numerics.activations import best_clip_ratio, fake_quantize, highest_code


def scalar(value):
    return torch.tensor(float(value))


def values(tokens=5, channels=12, seed=0):
    return torch.randn(tokens, channels, generator=torch.Generator().manual_seed(seed))


def by_hand(row, clip_ratio, bits):
    """One token, one number at a time."""
    top = 2 ** (bits - 1) - 1
    step = clip_ratio * max(abs(float(x)) for x in row) / top
    if step == 0:
        return [0.0] * len(row)
    return [max(-top - 1, min(top, round(float(x) / step))) * step for x in row]


@given(st.integers(2, 8), st.floats(0.3, 1.0), st.integers(1, 9), st.integers(0, 99))
def test_every_token_is_rounded_on_its_own_range(bits, clip_ratio, channels, seed):
    given_values = values(channels=channels, seed=seed) * torch.logspace(-3, 3, 5).unsqueeze(1)
    rounded = fake_quantize(given_values, scalar(clip_ratio), scalar(highest_code(bits)))
    for row, result in zip(given_values, rounded, strict=True):
        step = clip_ratio * float(row.abs().max()) / highest_code(bits)
        expected = torch.tensor(by_hand(row, clip_ratio, bits))
        # Numbers half-way between two codes may go to either in float32.
        differs = (result - expected).abs() > 1e-4 * step
        half_way = ((row.double() / step) % 1 - 0.5).abs() < 1e-4
        assert not bool((differs & ~half_way).any())


@pytest.mark.parametrize("bits", range(2, 9))
def test_whole_ranges_err_by_half_a_step_at_most_and_less_with_every_bit(bits):
    given_values = values(64, 48)
    rounded = fake_quantize(given_values, scalar(1), scalar(highest_code(bits)))
    step = given_values.abs().amax(-1, keepdim=True) / highest_code(bits)
    assert bool(((rounded - given_values).abs() <= step * 0.5001).all())
    finer = fake_quantize(given_values, scalar(1), scalar(highest_code(bits + 1)))
    assert (finer - given_values).square().mean() < (rounded - given_values).square().mean()


@pytest.mark.parametrize("channels", [12, 11, 3])
def test_a_group_is_rounded_as_if_it_were_the_whole_token(channels):
    given_values = values(channels=channels)
    rounded = fake_quantize(given_values, scalar(0.9), scalar(7), group_size=4)
    for start in range(0, channels, 4):
        alone = fake_quantize(given_values[:, start : start + 4], scalar(0.9), scalar(7))
        assert torch.equal(rounded[:, start : start + 4], alone)


def test_a_token_of_zeros_stays_zero_and_dtypes_are_kept():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        zeros = torch.zeros(2, 8, dtype=dtype)
        rounded = fake_quantize(zeros, scalar(0.9), scalar(7))
        assert rounded.dtype == dtype
        assert torch.equal(rounded, zeros)


def test_gradients_are_straight_through_inside_and_zero_outside_the_range():
    given_values = torch.tensor([[1.1, -4.0, 0.3, 2.6]], requires_grad=True)
    clip_ratio = scalar(0.5).requires_grad_(True)
    rounded = fake_quantize(given_values, clip_ratio, scalar(7))  # steps of 2/7: codes beyond -8 and 7 are cut off
    weights = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    (rounded * weights).sum().backward()
    assert torch.equal(given_values.grad, torch.tensor([[1.0, 0.0, 3.0, 0.0]]))
    # Of the share: code - x / step inside, the last code outside, times the step's own slope, 4 / 7.
    step = 2 / 7
    inside = [round(x / step) - x / step for x in (1.1, 0.3)]
    slope = 4 / 7 * (1 * inside[0] + 2 * -8 + 3 * inside[1] + 4 * 7)
    assert clip_ratio.grad.item() == pytest.approx(slope, rel=1e-5)


def test_the_best_share_is_the_best_of_all_and_follows_the_importance():
    sample = values(256, 64)
    sample[:, 0] *= 20  # an outlier that wants the whole range, if it counts
    everywhere = torch.ones(64)
    without = everywhere.clone()
    without[0] = 0

    def error(clip_ratio, importance):
        rounded = fake_quantize(sample, scalar(clip_ratio), scalar(highest_code(4)))
        return float(((rounded - sample).square() * importance).sum())

    for importance in (everywhere, without):
        clip_ratio = best_clip_ratio(sample, 4, importance)
        assert error(clip_ratio, importance) <= min(error(other / 40, importance) for other in range(16, 41)) * (
            1 + 1e-6
        )
    assert best_clip_ratio(sample, 4, without) < best_clip_ratio(sample, 4, everywhere)
