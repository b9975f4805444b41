"""Kernels round tokens, and finish products, as PyTorch's operations do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from quept import ops
from quept.numerics.hadamard import Rotation
from quept.ops import cpu, finish_product, quantize_tokens, rotate
from quept.ops.cpu.tensors import takes_rows

TINY = torch.finfo(torch.float32).tiny
NAN, INFINITY = float("nan"), float("inf")
DTYPES = (torch.float32, torch.bfloat16)

pytestmark = pytest.mark.skipif(not ops.paths(), reason="quept was installed without kernels")


@pytest.fixture(params=ops.paths())
def path(request):
    with ops.using(request.param):
        yield request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def rows(width, dtype, generator):
    """Rows of every kind that has been thought of."""
    normal = torch.randn(16, width, generator=generator)
    normal[1] = 0
    normal[2] *= TINY  # denormal, most of it
    normal[3] *= 1e-30
    normal[4] *= 1e30
    normal[5] = torch.finfo(dtype).max
    normal[6] = -normal[6].abs()
    normal[7, -1] = NAN
    normal[8, 0] = INFINITY
    normal[9, width // 2] = -INFINITY
    normal[10] = torch.arange(width) % 255 / 2 - 63.5  # halves of the step, where the share is one
    normal[10, 0] = 127
    normal[11] = 0
    normal[11, -1] = 1e-45
    normal[12] = -0.0
    normal[13] = -torch.finfo(dtype).max
    return normal.to(dtype)


def assert_same(found, expected):
    assert torch.equal(found.codes, expected.codes)
    torch.testing.assert_close(found.scale, expected.scale, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.sums, expected.sums)
    assert found.leading == expected.leading


def reference(*arguments):
    with ops.using(None):
        found = quantize_tokens(*arguments)
        assert found.known_sums is None
        return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 7, 16, 31, 64, 172, 1023, 1024])
def test_codes_scales_and_sums_are_the_reference_s_to_the_bit(path, width, dtype):
    x = rows(width, dtype, torch.Generator().manual_seed(width))
    for bits in range(2, 9):
        for clip_ratio in (1.0, 0.93, 1e-30):
            found = quantize_tokens(x, torch.tensor(clip_ratio), bits)
            assert found.known_sums is not None
            assert_same(found, reference(x, torch.tensor(clip_ratio), bits))


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=70),
    dtype=st.sampled_from(DTYPES),
    bits=st.integers(2, 8),
    clip_ratio=st.floats(2**-20, 1.0),
    which=st.sampled_from(ops.paths() or (None,)),
)
def test_any_float_is_rounded_alike(values, dtype, bits, clip_ratio, which):
    x = torch.tensor([values, values[::-1]]).to(dtype)
    with ops.using(which):
        assert_same(quantize_tokens(x, torch.tensor(clip_ratio), bits), reference(x, torch.tensor(clip_ratio), bits))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_lie_apart_or_be_no_rows_at_all(path, dtype):
    x = torch.randn(6, 4, 88, generator=torch.Generator().manual_seed(0)).to(dtype)
    views = [
        x[..., 3:80],
        x[..., ::2],
        x.transpose(0, 2),
        x[:, 1],
        x[0, 0],
        x[:1, :1].expand(6, 4, 88),
        x[:0],
        x[:, :0],
    ]
    views += [torch.randn(88, 6, generator=torch.Generator().manual_seed(1)).to(dtype).T, x.flip(0)[..., :1]]
    for view in views:
        assert_same(quantize_tokens(view, torch.tensor(0.9), 8), reference(view, torch.tensor(0.9), 8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_share_the_rows(path, threads, dtype):
    x = torch.randn(67, 1023, generator=torch.Generator().manual_seed(0)).to(dtype)
    product, scale = torch.randn(67, 1023, generator=torch.Generator().manual_seed(1)).to(dtype), torch.rand(67, 1)
    found = []
    for count in (1, 2, 3):
        threads(count)
        finished = finish_product(product.clone(), scale, None, None, None, dtype)
        quantized = quantize_tokens(x, torch.tensor(0.9), 8)
        found.append((quantized.codes, quantized.scale, quantized.sums, finished, rotate(x[:, :704], Rotation.of(704))))
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(others, found[0], strict=True))
    assert_same(quantize_tokens(x, torch.tensor(0.9), 8), reference(x, torch.tensor(0.9), 8))


def test_values_that_kernels_do_not_read_are_left_to_the_reference(path):
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    for other in (x.half(), x.double(), torch._neg_view(x), x.clone().requires_grad_()):
        with torch.enable_grad():
            assert not takes_rows(other)
            assert_same(quantize_tokens(other, torch.tensor(0.9), 8), reference(other, torch.tensor(0.9), 8))
    with FakeTensorMode() as mode:
        assert not takes_rows(mode.from_tensor(x))
    assert not takes_rows(x.to("meta"))
    assert not takes_rows(x.to_sparse())
    assert takes_rows(x)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 33, 172, 1023])
def test_a_product_is_finished_in_one_rounding(path, width, dtype, to, shifted, biased):
    generator = torch.Generator().manual_seed(width)
    product = torch.randn(9, width, generator=generator).to(dtype)
    scale = torch.rand(9, 1, generator=generator)
    sums = torch.randint(-1000, 1000, (9, 1), generator=generator).float() if shifted else None
    shift = torch.randn(1, width, generator=generator) if shifted else None
    bias = torch.randn(width, generator=generator).to(to) if biased else None
    expected = product.double()
    if sums is not None:
        expected = expected + sums * shift
    expected = expected * scale + (0 if bias is None else bias.double())
    terms = product.abs() + (0 if sums is None else (sums * shift).abs())
    largest = terms.double() * scale + (0 if bias is None else bias.double().abs())
    result = finish_product(product, scale, sums, shift, bias, to)
    assert result.dtype == to
    assert (result is product) == (to == dtype), "it is written over where it can be"
    error = (result.double() - expected).abs()
    rounding = 2**-8 * expected.abs() if to == torch.bfloat16 else 0
    assert bool((error <= rounding + 4 * 2**-24 * largest).all())


def test_what_is_not_finite_stays_so_in_a_product(path):
    product = torch.tensor([[1.0, NAN, INFINITY, -INFINITY] * 9]).bfloat16()
    result = finish_product(product.clone(), torch.tensor([[2.0]]), None, None, None, torch.bfloat16)
    torch.testing.assert_close(result, product * 2, equal_nan=True)


def test_a_product_that_does_not_fit_is_refused(path):
    product, scale = torch.zeros(3, 4), torch.ones(3, 1)
    for name, *wrong in (
        ("scale", scale[:2], None, None, None),
        ("sums", scale, scale[:2], None, None),
        ("shift", scale, scale, torch.ones(1, 5), None),
        ("bias", scale, None, None, scale),
    ):
        with pytest.raises(ValueError, match=f"{name} is "):
            finish_product(product, *wrong, torch.float32)
    with pytest.raises(ValueError, match="give sums"):
        finish_product(product, scale, None, torch.ones(1, 4), None, torch.float32)


def test_a_product_that_is_not_contiguous_is_left_to_the_reference(path):
    product, scale = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).T, torch.rand(3, 1)
    expected = product * scale
    kernel = cpu.tokens.finish_product(product, scale, None, None, None, torch.float32)
    assert kernel is NotImplemented
    assert torch.equal(finish_product(product, scale, None, None, None, torch.float32), expected)
