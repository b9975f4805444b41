import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import clamp

from quept.numerics import affine

WIDTHS = range(2, 9)

shapes = st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 48))
seeds = st.integers(0, 2**32 - 1)
widths = st.sampled_from(WIDTHS)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def clip_ratios(like, seed):
    """Shares of the range between one half and one, one per group."""
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + 0.5 * torch.rand(*like.shape[:2], 1, generator=generator).to(like.dtype)


def rounded_by_loops(grouped, bits, low_clip_ratio=None, high_clip_ratio=None, offset=None):
    """The method's quantizer, one number at a time, in float32 like the library."""
    maximum, f = 2**bits - 1, np.float32
    result = torch.empty_like(grouped)
    for row in range(grouped.shape[0]):
        for group in range(grouped.shape[1]):
            values = grouped[row, group].numpy()
            low, high = min(f(0), values.min()), max(f(0), values.max())
            if low_clip_ratio is not None:
                low = f(low * low_clip_ratio[row, group, 0].numpy())
            if high_clip_ratio is not None:
                high = f(high * high_clip_ratio[row, group, 0].numpy())
            scale = f(f(high - low) / f(maximum))
            scale = scale if scale > 0 else f(1)
            zero_point = np.rint(f(-low / scale))
            for position, value in enumerate(values):
                steps = f(value / scale)
                if offset is not None:
                    steps = f(steps + offset[row, group, position].numpy())
                code = min(max(np.rint(steps) + zero_point, f(0)), f(maximum))
                result[row, group, position] = float(f(f(code - zero_point) * scale))
    return result


def naive(grouped, scale, zero_point, maximum, offset=None):
    """The same expression for plain autograd: rounding passes the gradient straight through, clamp does the rest."""
    steps = grouped / scale
    if offset is not None:
        steps = steps + offset
    steps = steps + (steps.round() - steps).detach()
    return scale * (clamp(steps + zero_point, 0, maximum) - zero_point)


@given(shapes, seeds)
@settings(deadline=None, max_examples=60)
def test_joining_undoes_splitting_also_with_a_ragged_last_group(shape, seed):
    out_features, in_features, inputs = shape
    weight = normal(out_features, in_features, seed=seed)
    grouped = affine.split_groups(weight, inputs)
    assert grouped.shape == (out_features, affine.groups_per_row(in_features, inputs), inputs)
    assert torch.equal(affine.join_groups(grouped, in_features), weight)
    # What fills the last group is zero, so it moves no range.
    assert torch.equal(grouped.flatten(1)[:, in_features:], torch.zeros(out_features, -in_features % inputs))


def test_a_group_holds_neighbouring_inputs_of_one_row():
    weight = torch.arange(14.0).reshape(2, 7)
    expected = [[[0, 1, 2], [3, 4, 5], [6, 0, 0]], [[7, 8, 9], [10, 11, 12], [13, 0, 0]]]
    assert affine.split_groups(weight, 3).tolist() == expected


@given(shapes, seeds, widths, st.floats(-3, 3))
@settings(deadline=None, max_examples=60)
def test_zero_is_exactly_on_every_grid(shape, seed, bits, shift):
    """Also where all weights of a row have the same sign."""
    out_features, in_features, inputs = shape
    grouped = affine.split_groups(normal(out_features, in_features, seed=seed) + shift, inputs)
    to = affine.grid(grouped, bits, clip_ratios(grouped, seed), clip_ratios(grouped, seed + 1))
    assert to.maximum == 2**bits - 1
    assert torch.equal(to.zero_point, to.zero_point.round())
    assert bool((to.zero_point >= 0).all())
    assert bool((to.zero_point <= to.maximum).all())
    assert torch.equal(affine.fake_quantize(torch.zeros_like(grouped), to), torch.zeros_like(grouped))


@given(seeds, widths)
@settings(deadline=None, max_examples=40)
def test_the_grid_spans_the_given_shares_of_the_range(seed, bits):
    grouped = normal(3, 2, 16, seed=seed)
    low_clip_ratio, high_clip_ratio = clip_ratios(grouped, seed), clip_ratios(grouped, seed + 1)
    to = affine.grid(grouped, bits, low_clip_ratio, high_clip_ratio)
    low, high = grouped.amin(-1, keepdim=True) * low_clip_ratio, grouped.amax(-1, keepdim=True) * high_clip_ratio
    torch.testing.assert_close(to.scale * to.maximum, high - low)
    # The zero point is integral, so that the grid's ends lie within half a step of the range's.
    tolerance = 0.5 * to.scale * (1 + 1e-4)
    assert bool(((-to.zero_point * to.scale - low).abs() <= tolerance).all())
    assert bool((((to.maximum - to.zero_point) * to.scale - high).abs() <= tolerance).all())


def test_a_smaller_share_of_one_end_leaves_the_other_end():
    grouped = torch.tensor([[[-1.0, 2.0]]])
    low = affine.grid(grouped, 8, low_clip_ratio=torch.full((1, 1, 1), 0.5))
    high = affine.grid(grouped, 8, high_clip_ratio=torch.full((1, 1, 1), 0.75))
    torch.testing.assert_close(low.scale.item() * 255, 2.5)
    torch.testing.assert_close(high.scale.item() * 255, 2.5)
    assert low.zero_point.item() == 51
    assert high.zero_point.item() == 102


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 3e-20, -6e4])
def test_constant_rows_stay_finite_and_exact_in_value_and_gradient(bits, value):
    grouped = torch.full((2, 1, 5), value, requires_grad=True)
    clip_ratio = torch.ones(2, 1, 1, requires_grad=True)
    result = affine.fake_quantize(grouped, affine.grid(grouped, bits, clip_ratio, clip_ratio))
    torch.testing.assert_close(result.detach(), grouped.detach())
    result.sum().backward()
    assert grouped.grad.isfinite().all()
    assert clip_ratio.grad.isfinite().all()


@given(shapes, seeds, widths, st.booleans(), st.booleans(), st.floats(-2, 2))
@settings(deadline=None, max_examples=60)
def test_fake_quantize_equals_a_loop_over_single_weights(shape, seed, bits, clipped, moved, shift):
    out_features, in_features, inputs = shape
    grouped = affine.split_groups(normal(out_features, in_features, seed=seed) + shift, inputs)
    low_clip_ratio, high_clip_ratio = (
        (clip_ratios(grouped, seed), clip_ratios(grouped, seed + 1)) if clipped else (None, None)
    )
    offset = normal(*grouped.shape, seed=seed + 2) if moved else None
    result = affine.fake_quantize(grouped, affine.grid(grouped, bits, low_clip_ratio, high_clip_ratio), offset)
    expected = rounded_by_loops(grouped, bits, low_clip_ratio, high_clip_ratio, offset)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)


@given(shapes, seeds, st.booleans(), st.booleans())
@settings(deadline=None, max_examples=40)
def test_dequantized_codes_equal_fake_quantize_bit_for_bit_at_every_bit_width(shape, seed, moved, traced):
    out_features, in_features, inputs = shape
    grouped = affine.split_groups(normal(out_features, in_features, seed=seed), inputs)
    offset = normal(*grouped.shape, seed=seed + 2) if moved else None
    for bits in WIDTHS:
        to = affine.grid(grouped, bits, clip_ratios(grouped, seed), clip_ratios(grouped, seed + 1))
        codes = affine.codes(grouped, to, offset)
        assert codes.dtype == torch.uint8
        assert int(codes.max()) <= to.maximum
        result = affine.fake_quantize(grouped.clone().requires_grad_(traced), to, offset).detach()
        # Compared as integers: a negative zero would be another value to whoever packs or hashes the weights.
        assert torch.equal(affine.dequantize(codes, to).view(torch.int32), result.view(torch.int32))


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_agree_with_fake_quantize_also_halfway_between_two_of_them(bits, moved):
    """Where the last bit of a quotient decides: a reciprocal in the place of a division would show here."""
    to = affine.grid(normal(500, 1, 8, seed=bits), bits)
    steps = torch.arange(to.maximum) + 0.5 - to.zero_point
    grouped = steps * to.scale
    offset = (normal(*grouped.shape).round() / 2) if moved else None
    codes = affine.codes(grouped, to, offset)
    assert torch.equal(affine.dequantize(codes, to), affine.fake_quantize(grouped, to, offset))


def test_quantizing_changes_neither_the_weight_nor_the_offset():
    grouped, offset = normal(3, 2, 8), normal(3, 2, 8, seed=1)
    before, offset_before = grouped.clone(), offset.clone()
    to = affine.grid(grouped, 3)
    affine.fake_quantize(grouped, to, offset)
    affine.codes(grouped, to, offset)
    assert torch.equal(grouped, before)
    assert torch.equal(offset, offset_before)


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
def test_gradients_equal_those_of_the_naive_expression(bits, moved):
    maximum = 2**bits - 1
    weight = normal(4, 3, 32, dtype=torch.float64)
    to = affine.grid(weight, bits, clip_ratios(weight, 1), clip_ratios(weight, 2))
    offset = 2 * normal(4, 3, 32, seed=3, dtype=torch.float64)
    upstream = normal(4, 3, 32, seed=4, dtype=torch.float64)

    def gradients(function):
        leaves = [weight, to.scale, to.zero_point] + [offset] * moved
        leaves = [leaf.clone().requires_grad_(True) for leaf in leaves]
        result = function(*leaves)
        return result.detach(), *torch.autograd.grad(result, leaves, upstream)

    def custom(weight, scale, zero_point, offset=None):
        return affine.fake_quantize(weight, affine.Grid(scale, zero_point, maximum), offset)

    def plain(weight, scale, zero_point, offset=None):
        return naive(weight, scale, zero_point, maximum, offset)

    inside = (affine.codes(weight, to, offset if moved else None) % maximum) != 0
    assert inside.any()
    assert not inside.all()
    for got, expected in zip(gradients(custom), gradients(plain), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_each_gradient_is_right_when_it_alone_is_asked_for(needed):
    weight, offset = normal(3, 1, 16), normal(3, 1, 16, seed=1)
    to = affine.grid(weight, 3, clip_ratios(weight, 1), clip_ratios(weight, 2))
    upstream = normal(3, 1, 16, seed=4)
    leaves = [leaf.clone().requires_grad_(on) for leaf, on in zip((weight, to.scale, offset), needed, strict=True)]
    asked = [leaf for leaf in leaves if leaf.requires_grad]
    got = torch.autograd.grad(
        affine.fake_quantize(leaves[0], affine.Grid(leaves[1], to.zero_point, to.maximum), leaves[2]), asked, upstream
    )
    expected = torch.autograd.grad(naive(leaves[0], leaves[1], to.zero_point, to.maximum, leaves[2]), asked, upstream)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("bits", WIDTHS)
def test_gradients_of_shares_and_weight_through_the_grid_equal_the_naive_ones(bits):
    weight = affine.split_groups(normal(3, 40, dtype=torch.float64), 16)
    upstream = normal(*weight.shape, seed=5, dtype=torch.float64)

    def gradients(quantize):
        leaves = [weight, clip_ratios(weight, 6), clip_ratios(weight, 7)]
        leaves = [leaf.clone().requires_grad_(True) for leaf in leaves]
        return torch.autograd.grad(quantize(*leaves), leaves, upstream)

    def custom(weight, low_clip_ratio, high_clip_ratio):
        return affine.fake_quantize(weight, affine.grid(weight, bits, low_clip_ratio, high_clip_ratio))

    def plain(weight, low_clip_ratio, high_clip_ratio):
        low = low_clip_ratio * weight.amin(-1, keepdim=True)
        high = high_clip_ratio * weight.amax(-1, keepdim=True)
        scale = (high - low) / (2**bits - 1)
        start = -low / scale
        return naive(weight, scale, start + (start.round() - start).detach(), 2**bits - 1)

    for got, expected in zip(gradients(custom), gradients(plain), strict=True):
        assert bool(expected.any())
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@given(shapes, seeds, widths, st.floats(-2, 2))
@settings(deadline=None, max_examples=60)
def test_rounding_to_nearest_is_off_by_half_a_step_at_most(shape, seed, bits, shift):
    out_features, in_features, inputs = shape
    grouped = affine.split_groups(normal(out_features, in_features, seed=seed) + shift, inputs)
    to = affine.grid(grouped, bits)
    error = (affine.fake_quantize(grouped, to) - grouped).abs()
    assert bool((error <= 0.5 * to.scale * (1 + 1e-3)).all())


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_a_clipped_8_bit_grid_is_off_by_half_a_step_inside_its_range(seed):
    grouped = normal(4, 2, 64, seed=seed)
    to = affine.grid(grouped, 8, clip_ratios(grouped, seed), clip_ratios(grouped, seed + 1))
    codes = affine.codes(grouped, to)
    inside = (codes > 0) & (codes < 255)
    error = (affine.dequantize(codes, to) - grouped).abs() / to.scale
    assert inside.any()
    assert float(error[inside].max()) <= 0.5 + 1e-3


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_the_error_of_rounding_falls_with_the_bit_width(seed):
    grouped = normal(4, 2, 64, seed=seed)
    errors = [float((affine.fake_quantize(grouped, affine.grid(grouped, b)) - grouped).abs().mean()) for b in WIDTHS]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 20 * errors[-1]


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_finer_groups_never_have_larger_steps(seed):
    weight = normal(3, 48, seed=seed)
    row = affine.grid(affine.split_groups(weight, 48), 3).scale
    groups = affine.grid(affine.split_groups(weight, 16), 3).scale
    assert bool((groups <= row).all())


def test_rounding_straight_through_rounds_exactly_and_passes_the_gradient():
    value = torch.linspace(-4, 260, 999, requires_grad=True)
    rounded = affine.round_straight_through(value)
    assert torch.equal(rounded.detach(), value.detach().round())
    assert torch.equal(torch.autograd.grad(rounded.sum(), value)[0], torch.ones(999))


@pytest.mark.parametrize("tensors", [False, True])
def test_clamping_has_gradient_one_on_its_bounds_and_zero_beyond(tensors):
    """Whatever PyTorch's own has there: half of the codes at two bits lie on the bounds."""
    low, high = (torch.tensor(-1.0), torch.tensor(2.0)) if tensors else (-1.0, 2.0)
    values = torch.tensor([-1.5, -1.0, 0.5, 2.0, 2.5, float("nan")], requires_grad=True)
    clamped = affine.clamp(values, low, high)
    torch.testing.assert_close(clamped.detach(), torch.clamp(values.detach(), low, high), equal_nan=True)
    (gradient,) = torch.autograd.grad(clamped[:5].sum(), values)
    assert gradient[:5].tolist() == [0, 1, 1, 1, 0]


def test_a_range_that_ends_at_zero_still_moves_with_its_end():
    grouped = torch.tensor([[[0.0, 1.0]], [[-1.0, 0.0]], [[0.5, 1.0]]], requires_grad=True)
    low, high = affine.min_max(grouped)
    (gradient,) = torch.autograd.grad((low + high).sum(), grouped)
    assert gradient.flatten(1).tolist() == [[1, 1], [1, 1], [0, 1]]
