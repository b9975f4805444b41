"""Kernels on packed weights give the specification's bits, whatever the shape, the path and the threads."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses import FakeTensorMode

from quept import ops
from quept.errors import InvalidInput
from quept.formats import packing
from quept.formats.dtypes import DTYPES as NAMED
from quept.formats.packed import PackedWeight
from quept.formats.stored import StoredWeight
from quept.numerics import affine
from quept.ops import dequantize, packed_linear, rebuild
from quept.ops.cpu import packed as kernels
from quept.ops.cpu.tensors import is_plain
from quept.ops.reference.tiles import tile_product

pytestmark = pytest.mark.skipif(not ops.paths(), reason="quept was installed without kernels")

DTYPES = st.sampled_from(list(NAMED.values()))
WIDTHS = st.integers(2, 8)
INPUTS = st.sampled_from([1, 7, 31, 128, 129, 172, 300, 1023, 1152])
OUTPUTS = st.sampled_from([1, 3, 4, 5, 9])
PATHS = st.sampled_from(ops.paths() or ("none",))
FIELDS = ("codes", "scale", "row_scale", "zero_point")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def random_weight(out_features, in_features, bits, inputs_per_scale, seed=0):
    draw, groups = drawn(seed), affine.groups_per_row(in_features, inputs_per_scale)
    codes = torch.randint(0, 2**bits, (out_features, in_features), generator=draw).to(torch.uint8)
    zero_point = torch.randint(0, 2**bits, (out_features, groups), generator=draw).float()
    scale = 10 ** -(6 * torch.rand(out_features, groups, generator=draw))
    return PackedWeight.of(codes, scale, zero_point, bits, inputs_per_scale)


def random_store(out_features, in_features, master_group, rank, groups, mask, seed):
    draw = drawn(seed)

    def signed(*shape):
        return torch.randint(-127, 128, shape, generator=draw).to(torch.int8)

    master = signed(out_features, in_features)
    master[0, : in_features // 2] = 0  # groups of zeros, in a row that has others
    master[-1] = 0
    shape = (out_features, affine.groups_per_row(in_features, master_group))
    scale = (torch.rand(shape, generator=draw) * 1e-3 + 1e-4).bfloat16()
    adapter = {}
    if rank:
        up, down = signed(out_features, rank), signed(rank, in_features)
        up[0] = 0
        adapter = {"up": up, "down": down, "adapter_scale": torch.rand(out_features, generator=draw) * 1e-6}
    clip_ratios = torch.randint(0, 256, (2, out_features, groups), generator=draw).to(torch.uint8) if groups else None
    flipped = torch.randint(0, 2, (out_features, in_features), generator=draw).to(torch.uint8)
    return StoredWeight(
        master,
        scale,
        master_group,
        **adapter,
        clip_ratios=clip_ratios,
        mask=packing.pack(flipped, 1) if mask else None,
    )


def assert_same(found, expected):
    for name in FIELDS:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other), name


@settings(max_examples=250, deadline=None)
@given(
    path=PATHS,
    bits=WIDTHS,
    in_features=INPUTS,
    out_features=OUTPUTS,
    inputs_per_scale=st.sampled_from([32, 64, 128, 256, 2000]),
    tokens=st.integers(0, 9),
    dtype=DTYPES,
    biased=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_products_are_those_of_the_specification(
    path, bits, in_features, out_features, inputs_per_scale, tokens, dtype, biased, seed
):
    weight = random_weight(out_features, in_features, bits, inputs_per_scale, seed)
    x = torch.randn(tokens, in_features, generator=drawn(seed)).to(dtype)
    if tokens > 2:
        x[0] = 0
        x[1] *= 1e-30
        x[2, ::5] *= 300
    bias = torch.randn(out_features, generator=drawn(seed)).to(dtype) if biased else None
    with ops.using(path):
        found = packed_linear(x, weight, bias)
    expected = tile_product(x, weight, bias)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("path", ops.paths())
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_largest_codes_do_not_overflow(path, bits):
    for codes, zero_point in ((2**bits - 1, 0.0), (0, 2.0**bits - 1)):
        given = torch.full((3, 256), codes, dtype=torch.uint8), torch.ones(3, 1), torch.full((3, 1), zero_point)
        weight = PackedWeight.of(*given, bits, 256)
        for x in (torch.ones(4, 256), -torch.ones(4, 256)):
            with ops.using(path):
                assert torch.equal(packed_linear(x, weight), x @ dequantize(weight, torch.float32).T)


@pytest.mark.parametrize("path", ops.paths())
def test_what_is_not_finite_stays_in_its_token(path):
    weight, x = random_weight(5, 300, 4, 128), torch.ones(4, 300)
    x[0, 3], x[1, 299], x[2, 0] = torch.nan, torch.inf, -torch.inf
    with ops.using(path):
        found = packed_linear(x, weight)
    assert found.isnan().all(1).tolist() == [True, True, True, False]
    assert torch.equal(found[3:], tile_product(x[3:], weight))


@settings(max_examples=150, deadline=None)
@given(
    path=PATHS,
    bits=WIDTHS,
    in_features=INPUTS,
    out_features=OUTPUTS,
    inputs_per_scale=st.sampled_from([7, 24, 32, 64, 128, 172, 256, 2000]),
    dtype=DTYPES,
    seed=st.integers(0, 1000),
)
def test_dense_rows_are_those_of_the_specification(
    path, bits, in_features, out_features, inputs_per_scale, dtype, seed
):
    weight = random_weight(out_features, in_features, bits, inputs_per_scale, seed)
    rows = slice(out_features // 3, out_features)
    with ops.using(path):
        found = dequantize(weight, dtype, rows), dequantize(weight, dtype)
    with ops.using(None):
        expected = dequantize(weight, dtype, rows), dequantize(weight, dtype)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@settings(max_examples=250, deadline=None)
@given(
    path=PATHS,
    bits=WIDTHS,
    in_features=INPUTS,
    out_features=OUTPUTS,
    inputs_per_scale=st.sampled_from([7, 24, 32, 64, 128, 172, 256, 2000]),
    master_group=st.sampled_from([50, 128, 2000]),
    rank=st.sampled_from([0, 1, 3, 16]),
    clipped=st.booleans(),
    mask=st.booleans(),
    symmetric=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_what_is_rebuilt_is_the_specification_s(
    path, bits, in_features, out_features, inputs_per_scale, master_group, rank, clipped, mask, symmetric, seed
):
    groups = affine.groups_per_row(in_features, inputs_per_scale) if clipped else 0
    store = random_store(out_features, in_features, master_group, rank, groups, mask, seed)
    with ops.using(path):
        found = rebuild(store, bits, inputs_per_scale, symmetric)
    with ops.using(None):
        expected = rebuild(store, bits, inputs_per_scale, symmetric)
    assert_same(found, expected)


def test_threads_share_the_rows(threads):
    store = random_store(67, 2048, 128, 5, 16, True, 0)
    x = torch.randn(33, 2048, generator=drawn(1))
    found = []
    for count in (1, 2, 3):
        threads(count)
        weight = rebuild(store, 3, 128, False)
        products = packed_linear(x[:1], weight), packed_linear(x[:32], weight)
        found.append((weight, (*products, dequantize(weight, torch.bfloat16))))
    for weight, others in found[1:]:
        assert_same(weight, found[0][0])
        assert all(torch.equal(one, other) for one, other in zip(others, found[0][1], strict=True))


def test_tokens_may_lie_apart(threads):
    weight, x = random_weight(9, 300, 5, 300), torch.randn(4, 3, 700, generator=drawn(1))
    for view in (x[..., 5:305], x[..., ::2][..., :300], x.transpose(0, 1)[..., :300], x[1, 2, :300], x[:0, :, :300]):
        expected = tile_product(view.reshape(-1, 300).contiguous(), weight).view(*view.shape[:-1], 9)
        assert torch.equal(packed_linear(view, weight), expected)


def test_many_tokens_and_exact_ones_are_multiplied_as_floats():
    weight = random_weight(9, 300, 5, 300)
    x = torch.randn(2, kernels.FEW, 300, generator=drawn(1))
    bias = torch.randn(9, generator=drawn(2))
    expected = x @ dequantize(weight, torch.float32).T + bias
    torch.testing.assert_close(packed_linear(x, weight, bias), expected)
    # Processors add up in other orders: sums of 300 products of about one differ by a few 1e-5.
    torch.testing.assert_close(packed_linear(x[0, :1], weight, bias, exact=True), expected[0, :1], rtol=1e-5, atol=1e-4)
    few = packed_linear(x[0], weight, bias)
    assert not torch.equal(few, expected[0])
    torch.testing.assert_close(few, expected[0], rtol=0.02, atol=0.02 * float(expected.abs().max()))


def test_what_kernels_cannot_read_is_left_to_the_reference():
    weight, x = random_weight(4, 256, 4, 128), torch.randn(3, 256, generator=drawn(1))
    assert kernels.native_weight(weight) is kernels.native_weight(weight) is not None
    assert is_plain(nn.Parameter(x))
    for other in (torch._neg_view(x), x.to("meta"), x.to_sparse()):
        assert not is_plain(other)
    with FakeTensorMode() as mode:
        assert not is_plain(mode.from_tensor(x))
    torch.testing.assert_close(packed_linear(torch._neg_view(x), weight), -packed_linear(x, weight, exact=True))
    empty = PackedWeight.of(torch.zeros(0, 8, dtype=torch.uint8), torch.ones(0, 1), torch.ones(0, 1), 4, 8)
    assert kernels.native_weight(empty) is None
    assert packed_linear(torch.ones(2, 8), empty).shape == (2, 0)


def test_a_copy_of_a_weight_has_memory_of_its_own():
    weight = random_weight(4, 256, 4, 128)
    native = kernels.native_weight(weight)
    twin = copy.deepcopy(weight)
    assert kernels.native_weight(twin) is not native
    assert kernels.native_weight(twin).held[0].data_ptr() != weight.codes.data_ptr()


def test_arguments_that_do_not_fit_are_refused():
    weight, x = random_weight(4, 256, 4, 128), torch.zeros(3, 256)
    with pytest.raises(ValueError, match="100 channels"):
        packed_linear(x[:, :100], weight)
    for bias in (torch.zeros(5), torch.zeros(4, 1)):
        with pytest.raises(ValueError, match="bias is"):
            packed_linear(x, weight, bias)
    assert dequantize(weight, torch.float32, slice(2, 9)).shape == (2, 256)
    assert dequantize(weight, torch.float32, slice(3, 1)).shape == (0, 256)
    assert kernels.dequantize(weight, torch.float32, slice(0, 4, 2)) is NotImplemented
    assert torch.equal(dequantize(weight, torch.float32, slice(0, 4, 2)), dequantize(weight, torch.float32)[::2])
    with pytest.raises(ValueError, match="2 to 8 bits"):
        rebuild(random_store(4, 256, 128, 0, 0, False, 0), 9, 128, False)


def test_groups_that_are_not_multiplied_in_integers_are_multiplied_as_floats():
    weight, x = random_weight(4, 256, 4, 24), torch.randn(3, 256, generator=drawn(1))
    torch.testing.assert_close(packed_linear(x, weight), x @ dequantize(weight, torch.float32).T)


def test_memory_is_read_at_some_rate(monkeypatch):
    assert 1e6 < ops.read_bandwidth(2**22, 2) < 1e14
    monkeypatch.setattr("quept.ops.cpu.extension._load", lambda: (None, "quept was installed without them"))
    with pytest.raises(InvalidInput, match="no kernels here"):
        ops.read_bandwidth()
