import pytest
import torch

from quept.numerics.keyvalues import clip_ratio, dequantize, fake_quantize, quantize

WIDTHS = range(2, 9)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def values(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", WIDTHS)
def test_simulated_is_stored_bit_for_bit(bits, dtype):
    given = values(3, 2, 50, 12, dtype=dtype)
    stored = quantize(given, bits)
    assert (stored.codes.dtype, stored.scale.dtype, stored.zero_point.dtype) == (
        torch.uint8,
        torch.float16,
        torch.uint8,
    )
    assert stored.scale.shape == stored.zero_point.shape == (3, 2, 50, 1)
    assert stored.codes.max() == 2**bits - 1
    simulated = fake_quantize(given, bits)
    assert simulated.dtype == dtype
    assert simulated.equal(dequantize(stored, dtype))


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_naive_reference_in_float64_agrees(bits):
    given = values(200, 16)
    low, high = clip_ratio(bits) * given.amin(-1, keepdim=True), clip_ratio(bits) * given.amax(-1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).half().double()
    zero_point = (-low.double() / scale).round()
    exact = given.double() / scale + zero_point
    codes = exact.round().clamp(0, 2**bits - 1)
    # Where the quotient is within float32's rounding of a half, either neighbour is right.
    sure = ((exact - exact.floor() - 0.5).abs() > 1e-4).all(-1)
    assert sure.float().mean() > 0.8
    stored = quantize(given, bits)
    assert stored.codes[sure].double().equal(codes[sure])
    assert dequantize(stored, torch.float32)[sure].double().equal((scale * (codes - zero_point))[sure])


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_vector_is_quantized_alike_alone_and_among_others(bits):
    given = values(2, 3, 17, 64)
    alone = torch.cat([fake_quantize(given[:, :, i : i + 1], bits) for i in range(17)], dim=2)
    assert alone.equal(fake_quantize(given, bits))


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_error_inside_the_range_is_half_a_step(bits):
    given = values(500, 64)
    scale = quantize(given, bits).scale.float()
    low, high = clip_ratio(bits) * given.amin(-1, keepdim=True), clip_ratio(bits) * given.amax(-1, keepdim=True)
    error = (fake_quantize(given, bits) - given).abs()
    inside = (given >= low) & (given <= high)
    assert inside.float().mean() > 0.9
    # The ends of the grid lie up to half a step from the range's, because zero has a code; 1e-3: float16.
    assert (error <= scale * (1 + 1e-3 * 2**bits)).logical_or(~inside).all()
    interior = (given >= low + scale) & (given <= high - scale)
    assert (error <= scale * 0.5001).logical_or(~interior).all()


@pytest.mark.parametrize("bits", WIDTHS)
def test_zeros_stay_zeros(bits):
    given = values(20, 8)
    given[:, 3] = 0
    given[7] = 0
    result = fake_quantize(given, bits)
    assert result[given == 0].eq(0).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bits", WIDTHS)
def test_a_constant_vector_is_the_end_of_its_range(bits, sign):
    result = fake_quantize(torch.full((1, 16), sign * 3.0), bits)
    assert torch.allclose(result, torch.full_like(result, sign * 3.0 * clip_ratio(bits)), rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("magnitude", [1e-38, 1e-9, 1e-7, 1e-6, 1e3, 1e6, 3e37])
@pytest.mark.parametrize("bits", WIDTHS)
def test_magnitudes_outside_float16_are_cut_off_and_never_undefined(bits, magnitude, dtype):
    given = values(40, 64, dtype=dtype) * magnitude
    stored = quantize(given, bits)
    result = dequantize(stored, dtype)
    assert stored.scale.gt(0).all()
    assert stored.scale.isfinite().all()
    assert result.isfinite().all()
    assert result.equal(fake_quantize(given, bits))
    # The grid's ends lie within half a step of the range's; 2**-8: the result is rounded to bfloat16.
    limit = given.float().abs().amax(-1, keepdim=True) + stored.scale.float() / 2
    assert (result.float().abs() <= limit * (1 + 2**-8)).all()


def test_the_widest_range_has_no_infinite_bit_width():
    given = torch.tensor([[-3e38, 3e38, 1.0, 0.0]])
    assert quantize(given, 4).scale.item() == 65504
    assert fake_quantize(given, 4).isfinite().all()


def test_gradients_pass_inside_the_range_only():
    given = torch.tensor([[0.6, 0.5, 0.0, 0.25, 1.0, 0.1, 0.2, 0.3]], requires_grad=True)
    weights = torch.arange(1.0, 9.0)
    (fake_quantize(given, 4) * weights).sum().backward()
    # The largest is cut to 95 %, which is nearer to a code that there is not.
    assert given.grad.tolist() == [[1.0, 2.0, 3.0, 4.0, 0.0, 6.0, 7.0, 8.0]]


def test_more_bits_are_closer():
    given = values(400, 64)
    errors = [float((fake_quantize(given, bits) - given).norm()) for bits in WIDTHS]
    assert errors == sorted(errors, reverse=True)
