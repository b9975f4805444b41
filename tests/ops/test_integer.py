"""Linears in integers compute what quantized weights and activations stand for."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from quept import ops
from quept.formats.integers import LARGEST_IN, IntegerWeight
from quept.numerics import affine
from quept.ops import int_mm, integer_linear, integer_weight, quantize_tokens
from quept.ops.exactness import ExactProduct

CPU = torch.device("cpu")
BACKENDS = [kernel.backend.name for kernel in ops.integer_product.kernels if not kernel.backend.absence("cpu")]
BACKENDS.append("reference")


def packed_for(backend, codes, scale, zero_point):
    """The weight packed for one backend."""
    with ops.using(None if backend == "reference" else backend):
        weight = integer_weight(codes, scale, zero_point, CPU)
    assert weight.layout == backend
    return weight


def random_weight(generator, out_features, in_features, bits, extreme=False):
    """Codes, scales and zero points of a weight; `extreme` zero points are the ends of the codes."""
    maximum = 2**bits - 1
    codes = torch.randint(0, maximum + 1, (out_features, in_features), generator=generator).to(torch.uint8)
    scale = torch.rand(out_features, generator=generator) + 0.01
    zero_point = torch.randint(0, 2 if extreme else maximum + 1, (out_features,), generator=generator)
    return codes, scale, zero_point * maximum if extreme else zero_point


def simulated(tokens, codes, scale, zero_point, bias=None):
    """The same from dequantized values, in float64."""
    values = (tokens.codes.double() - 128) * tokens.scale.double()
    weight = (codes.double() - zero_point.double().unsqueeze(1)) * scale.double().unsqueeze(1)
    result = values @ weight.T + (0 if bias is None else bias.double())
    return result.reshape(*tokens.leading, len(codes))


def assert_close(result, expected, relative):
    error = (result.double() - expected).abs().max()
    assert float(error) <= relative * float(expected.square().mean().sqrt()) or float(error) == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150, deadline=None)
@given(
    tokens=st.integers(1, 33),
    in_features=st.sampled_from([1, 2, 7, 64, 172, 1023]),
    out_features=st.sampled_from([1, 3, 16, 65]),
    activation_bits=st.integers(2, 8),
    weight_bits=st.integers(2, 8),
    extreme=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    with_bias=st.booleans(),
    clip_ratio=st.floats(0.05, 1.0),
    seed=st.integers(0, 2**16),
)
@example(17, 1023, 65, 8, 8, True, torch.float32, True, 1.0, 0)
@example(1, 1, 1, 8, 8, True, torch.bfloat16, False, 1.0, 0)
def test_the_result_is_that_of_the_dequantized_values(
    backend,
    tokens,
    in_features,
    out_features,
    activation_bits,
    weight_bits,
    extreme,
    dtype,
    with_bias,
    clip_ratio,
    seed,
):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, in_features, generator=generator).to(dtype)
    weight = random_weight(generator, out_features, in_features, weight_bits, extreme)
    bias = torch.randn(out_features, generator=generator) if with_bias else None
    quantized = quantize_tokens(x, torch.tensor(clip_ratio), activation_bits)
    packed = packed_for(backend, *weight)
    expected = simulated(quantized, *weight, bias)
    result = integer_linear(quantized, packed, bias)
    if in_features >= 64:
        assert_close(result, expected, 1e-5)
    # With few inputs the shift can cancel almost all of the product, so that what counts is how large both are.
    steps = (quantized.codes.double() - 128).abs().sum(-1, keepdim=True) * quantized.scale.double()
    largest = steps * 255 * weight[1] + (0 if bias is None else bias.abs())
    assert bool(((result.double() - expected).abs() <= 1e-6 * largest + 1e-30).all())
    # In bfloat16 the product, the product with the scale, and the sum with the bias are rounded, by 2**-8 at most each.
    quantized = quantize_tokens(x.bfloat16(), torch.tensor(clip_ratio), activation_bits)
    result = integer_linear(quantized, packed, bias)
    half = integer_linear(quantized, packed, bias, torch.bfloat16).double()
    scaled = (result.double() - (0 if bias is None else bias)).abs() + (0 if bias is None else bias.abs())
    assert bool(((half - result.double()).abs() <= 3.1 * 2**-8 * scaled + 1e-30).all())


@settings(max_examples=150, deadline=None)
@given(
    bits=st.integers(2, 8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    clip_ratio=st.floats(0.05, 1.0),
    magnitude=st.sampled_from([1e-37, 1e-20, 1.0, 1e20, 1e37]),
    seed=st.integers(0, 2**16),
)
def test_codes_are_the_nearest_that_the_bit_width_has(bits, dtype, clip_ratio, magnitude, seed):
    x = torch.randn(5, 43, generator=torch.Generator().manual_seed(seed))
    x = x.to(dtype) if dtype == torch.float16 else (x * magnitude / 10).to(dtype)
    quantized = quantize_tokens(x, torch.tensor(clip_ratio), bits)
    codes, highest = quantized.codes.double() - 128, 2 ** (bits - 1) - 1
    scale = (torch.tensor(clip_ratio) * x.float().abs().amax(-1, keepdim=True) / highest).clamp_min(
        torch.finfo(torch.float32).tiny
    )
    torch.testing.assert_close(quantized.scale, scale, rtol=2**-8 if dtype == torch.bfloat16 else 1e-6, atol=0)
    assert int(codes.min()) >= -highest - 1
    assert int(codes.max()) <= highest
    steps = (x.double() / quantized.scale.double()).clamp(-highest - 1, highest)
    assert float((steps - codes).abs().max()) <= 0.5 + 1e-4
    assert torch.equal(quantized.sums.double(), codes.sum(-1, keepdim=True))


def test_halves_go_to_the_even_code():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127.0]])
    codes = quantize_tokens(x, torch.tensor(1.0), 8).codes.int() - 128
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, -127]]


def test_clipped_values_reach_the_lowest_code():
    codes = quantize_tokens(torch.tensor([[1.0, -1.0]]), torch.tensor(0.5), 4).codes.int() - 128
    assert codes.tolist() == [[7, -8]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_tokens_are_quantized_like_few(dtype):
    x = torch.randn(700, 1024, generator=torch.Generator().manual_seed(0)).to(dtype)
    together = quantize_tokens(x, torch.tensor(0.9), 8)
    for start in (0, 511, 512, 699):
        alone = quantize_tokens(x[start : start + 1], torch.tensor(0.9), 8)
        assert torch.equal(together.codes[start], alone.codes[0])
        assert torch.equal(together.scale[start], alone.scale[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_tokens_are_multiplied_like_few(backend, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    weight = random_weight(generator, 16, 172, 8)
    packed = packed_for(backend, *weight)
    quantized = quantize_tokens(torch.randn(50, 172, generator=generator), torch.tensor(0.9), 8)
    together = integer_linear(quantized, packed)
    monkeypatch.setattr("quept.ops.reference.integer.BLOCK", 16 * 7)
    assert torch.equal(integer_linear(quantized, packed), together)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("zero", [0, 128, 255])
def test_the_largest_sums_are_exact(backend, zero):
    x = torch.ones(2, LARGEST_IN)
    x[1] = -1
    quantized = quantize_tokens(x, torch.tensor(0.99), 8)  # codes of 127 and -128
    for code in (0, 255):
        codes = torch.full((3, LARGEST_IN), code, dtype=torch.uint8)
        weight = codes, torch.ones(3), torch.full((3,), zero)
        result = integer_linear(quantized, packed_for(backend, *weight))
        assert_close(result, simulated(quantized, *weight), 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_sums_are_exact_to_the_last_digit(backend):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (65, 172), generator=generator).to(torch.uint8)
    zero_point = torch.randint(0, 256, (65,), generator=generator)
    x = torch.randint(-127, 128, (33, 172), generator=generator).float()
    x[:, 0] = 127  # so that the scale is one
    result = integer_linear(
        quantize_tokens(x, torch.tensor(1.0), 8), packed_for(backend, codes, torch.ones(65), zero_point)
    )
    assert torch.equal(result.double(), x.double() @ (codes.double() - zero_point.unsqueeze(1)).T)


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_dimensions_stay_and_may_be_empty(backend):
    packed = packed_for(backend, *random_weight(torch.Generator().manual_seed(0), 5, 7, 8))
    for shape in ((2, 3, 7), (7,), (0, 7), (2, 0, 7)):
        quantized = quantize_tokens(torch.zeros(shape), torch.tensor(1.0), 8)
        result = integer_linear(quantized, packed, torch.arange(5.0), torch.bfloat16)
        assert torch.equal(result, torch.arange(5.0).bfloat16().expand(*shape[:-1], 5))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_quantized_linear_is_near_the_linear(bits):
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(64, 172, generator=generator), torch.randn(33, 172, generator=generator)
    grid = affine.grid(weight.unsqueeze(1), bits)
    codes = affine.codes(weight.unsqueeze(1), grid).squeeze(1)
    packed = integer_weight(codes, grid.scale.flatten(), grid.zero_point.flatten(), CPU)
    result = integer_linear(quantize_tokens(x, torch.tensor(1.0), 8), packed)
    held = F.linear(x, affine.dequantize(codes.unsqueeze(1), grid).squeeze(1))
    assert float((result - held).norm() / held.norm()) < 0.02
    assert packed.nbytes >= codes.numel()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_token_that_is_not_finite_does_not_become_finite(value):
    x = torch.ones(2, 7)
    x[0, 3] = value
    packed = integer_weight(*random_weight(torch.Generator().manual_seed(0), 5, 7, 4), CPU)
    result = integer_linear(quantize_tokens(x, torch.tensor(1.0), 8), packed)
    assert not bool(result[0].isfinite().any())
    assert bool(result[1].isfinite().all())


def test_a_product_that_saturates_or_is_missing_is_not_used(monkeypatch):
    def saturating(codes, weight, dtype):
        pairs = codes.double().unsqueeze(1) * weight.packed.double()
        sums = pairs.reshape(*pairs.shape[:-1], -1, 2).sum(-1).clamp(-(2**15), 2**15 - 1)
        return (sums.sum(-1) - 128 * weight.packed.double().sum(-1)).float()

    def missing(codes, weight, dtype):
        return torch.ops.quept.no_such_operator(codes)

    def absence(product):
        backend = ExactProduct("tried")
        backend.pack, backend.product = lambda weight: weight, product
        return backend.absence("cpu")

    assert absence(ops.integer_product.reference) == ""
    assert absence(saturating) == "its sums are not exact here"
    assert absence(missing) == "this PyTorch does not have it here"

    given = random_weight(torch.Generator().manual_seed(0), 2, 3, 8)
    monkeypatch.setattr(int_mm.BACKEND, "_inexactness", dict.fromkeys(("cpu", "cuda"), "its sums are not exact here"))
    assert int_mm.BACKEND.integer_weight(*given, CPU) is NotImplemented
    assert integer_weight(*given, CPU).layout != "int_mm"
    assert ops.integer_product.backend_on("cuda") is None


def test_a_weight_of_another_backend_is_refused_where_that_is_off():
    weight = IntegerWeight.of(*random_weight(torch.Generator().manual_seed(0), 2, 3, 8), CPU)
    tokens = quantize_tokens(torch.ones(1, 3), torch.tensor(1.0), 8)
    for other in ops.integer_product.kernels:
        assert other.run(tokens.codes, weight, torch.float32) is NotImplemented
    foreign = replace(weight, layout="nobody's")
    with pytest.raises(ValueError, match='packed for "nobody\'s", which is off'):
        integer_linear(tokens, foreign)


def test_what_cannot_be_computed_is_refused():
    codes, scale, zero_point = random_weight(torch.Generator().manual_seed(0), 2, 3, 8)
    with pytest.raises(ValueError, match="2 to 8 bits"):
        quantize_tokens(torch.zeros(1, 3), torch.tensor(1.0), 9)
    with pytest.raises(ValueError, match="at most 65793 inputs"):
        integer_weight(torch.zeros(1, LARGEST_IN + 1, dtype=torch.uint8), scale[:1], zero_point[:1], CPU)
    with pytest.raises(ValueError, match="4 channels, the weight 3"):
        integer_linear(
            quantize_tokens(torch.zeros(1, 4), torch.tensor(1.0), 8), integer_weight(codes, scale, zero_point, CPU)
        )


def test_only_devices_with_an_exact_product_are_said_to_have_one():
    assert ops.has_integer_product(CPU) == (len(BACKENDS) > 1)
    assert not ops.has_integer_product(torch.device("meta"))
    with ops.using(None):
        assert not ops.has_integer_product(CPU)
