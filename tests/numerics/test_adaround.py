import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quept.numerics import adaround, affine

WIDTHS = range(2, 9)
seeds = st.integers(0, 2**32 - 1)
widths = st.sampled_from(WIDTHS)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seeds, widths)
@settings(deadline=None, max_examples=40)
def test_with_a_zero_adapter_the_policy_rounds_to_nearest(seed, bits):
    grouped = normal(3, 2, 20, seed=seed)
    to = affine.grid(grouped, bits)
    offset = adaround.hard_offset(grouped, to, torch.zeros_like(grouped))
    steps = grouped / to.scale
    # What lies halfway between two codes, within float rounding, may go to either.
    clear = (steps - steps.floor() - 0.5).abs() > 1e-4
    assert torch.equal(affine.codes(grouped, to, offset)[clear], affine.codes(grouped, to)[clear])


def test_a_weight_halfway_between_two_codes_goes_to_one_of_them():
    """The one place where the policy may differ from rounding to even."""
    grouped = torch.tensor([[[-1.5, -0.5, 0.5, 1.5, 2.5]]])
    to = affine.Grid(torch.ones(1, 1, 1), torch.full((1, 1, 1), 4.0), 15)
    steps = affine.dequantize(affine.codes(grouped, to, adaround.hard_offset(grouped, to, torch.zeros(5))), to)
    assert torch.equal((steps - grouped).abs(), torch.full((1, 1, 5), 0.5))


@given(seeds, widths)
@settings(deadline=None, max_examples=40)
def test_soft_rounding_with_a_zero_adapter_returns_the_weight_inside_the_range(seed, bits):
    grouped = normal(3, 2, 20, seed=seed)
    to = affine.grid(grouped, bits, torch.full((3, 2, 1), 0.8), torch.full((3, 2, 1), 0.8))
    low, high = -to.zero_point * to.scale, (to.maximum - to.zero_point) * to.scale
    soft, up = adaround.soft_round(grouped, to, torch.zeros_like(grouped))
    torch.testing.assert_close(soft, torch.clamp(grouped, low, high), rtol=1e-4, atol=1e-4)
    assert bool((soft != affine.fake_quantize(grouped, to)).any())
    torch.testing.assert_close(up, grouped / to.scale - (grouped / to.scale).floor(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_sign_of_a_large_adapter_decides_between_floor_and_ceiling(bits):
    grouped = normal(4, 1, 30)
    to = affine.grid(grouped, bits)
    floor = (grouped / to.scale).floor()
    for sign in (-1, 1):
        adapter = torch.full_like(grouped, 30.0 * sign)
        expected = (floor + (sign > 0) + to.zero_point).clamp(0, to.maximum)
        codes = affine.codes(grouped, to, adaround.hard_offset(grouped, to, adapter))
        assert torch.equal(codes.float(), expected)
        soft, up = adaround.soft_round(grouped, to, adapter)
        assert torch.equal(up, torch.full_like(up, float(sign > 0)))
        torch.testing.assert_close(soft, (expected - to.zero_point) * to.scale)


@given(seeds, widths, st.floats(0.01, 50))
@settings(deadline=None, max_examples=60)
def test_the_policy_gives_floor_or_floor_plus_one_and_nothing_else(seed, bits, size):
    grouped, adapter = normal(3, 2, 20, seed=seed), size * normal(3, 2, 20, seed=seed + 1)
    to = affine.grid(grouped, bits, torch.full((3, 2, 1), 0.7), torch.full((3, 2, 1), 0.9))
    steps = grouped / to.scale
    up = (steps + adaround.hard_offset(grouped, to, adapter)).round() - steps.floor()
    assert set(up.unique().tolist()) <= {0.0, 1.0}


@given(seeds, widths)
@settings(deadline=None, max_examples=40)
def test_hard_rounding_takes_the_side_that_soft_rounding_leans_to(seed, bits):
    grouped, adapter = normal(3, 2, 20, seed=seed), normal(3, 2, 20, seed=seed + 1)
    to = affine.grid(grouped, bits)
    _, up = adaround.soft_round(grouped, to, adapter)
    steps = grouped / to.scale
    hard = (steps + adaround.hard_offset(grouped, to, adapter)).round() - steps.floor()
    clear = (up - 0.5).abs() > 1e-3
    assert clear.any()
    assert torch.equal(hard[clear], up[clear].round())


def test_the_rectified_sigmoid_is_monotone_and_reaches_both_bounds_at_finite_inputs():
    logits = torch.linspace(-8, 8, 401)
    values = adaround.rectified_sigmoid(logits)
    assert (float(values.min()), float(values.max())) == (0.0, 1.0)
    assert bool((values.diff() >= 0).all())
    assert adaround.rectified_sigmoid(torch.zeros(())).item() == pytest.approx(0.5)
    torch.testing.assert_close(values, 1 - values.flip(0))
    interior = (logits.abs() < 2).nonzero().squeeze(1)
    assert bool((values[interior].diff() > 0).all())


def test_soft_rounding_has_gradients_for_the_adapter_and_the_scale():
    """The adapter's gradient is the scale times the slope of the rectified sigmoid, inside the range."""
    grouped = normal(3, 1, 20)
    to = affine.grid(grouped, 4)
    scale = to.scale.clone().requires_grad_(True)
    adapter = torch.zeros_like(grouped).requires_grad_(True)
    soft, up = adaround.soft_round(grouped, affine.Grid(scale, to.zero_point, to.maximum), adapter)
    to_adapter, to_scale = torch.autograd.grad(soft.sum(), (adapter, scale))
    sigmoid = (up.detach() + 0.1) / 1.2
    code = soft.detach() / to.scale + to.zero_point
    inside = (code > 1e-3) & (code < to.maximum - 1e-3)
    assert inside.any()
    slope = 1.2 * sigmoid * (1 - sigmoid) * to.scale
    torch.testing.assert_close(to_adapter[inside], slope[inside], rtol=1e-3, atol=1e-5)
    assert bool((to_scale != 0).all())


@given(seeds, st.floats(1.5, 20))
@settings(deadline=None, max_examples=40)
def test_the_regulariser_is_zero_exactly_when_every_weight_has_decided(seed, sharpness):
    decided = (normal(4, 5, seed=seed) > 0).float()
    assert adaround.undecided(decided, sharpness).item() == 0
    undecided = decided.clone()
    undecided[1, 2] = 0.5
    assert adaround.undecided(undecided, sharpness).item() == pytest.approx(1 / 20)
    assert adaround.undecided(torch.full((3,), 0.5), sharpness).item() == 1


def test_the_regulariser_pushes_each_weight_to_its_nearer_side():
    up = torch.tensor([0.2, 0.8], requires_grad=True)
    adaround.undecided(up, 2.0).backward()
    assert up.grad[0] > 0 > up.grad[1]
