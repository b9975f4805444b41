"""Packed weights are the codes they were made of, and their products what these stand for."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import library
from torch.nn import functional as F

from quept.formats import packing, tiles
from quept.formats.dtypes import DTYPES
from quept.formats.packed import PackedWeight
from quept.formats.stored import StoredWeight
from quept.numerics import affine
from quept.ops import packed_linear, rebuild
from quept.ops.reference.tiles import quantize_tiles, tile_product

WIDTHS = range(2, 9)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_codes(out_features, in_features, bits, inputs_per_scale, seed=0):
    draw = generator(seed)
    groups = affine.groups_per_row(in_features, inputs_per_scale)
    codes = torch.randint(0, 2**bits, (out_features, in_features), generator=draw).to(torch.uint8)
    zero_point = torch.randint(0, 2**bits, (out_features, groups), generator=draw).float()
    return codes, torch.rand(out_features, groups, generator=draw) * 0.01 + 0.001, zero_point


def random_weight(out_features, in_features, bits, inputs_per_scale, seed=0):
    given = random_codes(out_features, in_features, bits, inputs_per_scale, seed)
    return PackedWeight.of(*given, bits, inputs_per_scale)


def random_store(out_features, in_features, master_group, rank, groups, mask, seed=0):
    draw = generator(seed)

    def signed(*shape):
        return torch.randint(-127, 128, shape, generator=draw).to(torch.int8)

    master_groups = affine.groups_per_row(in_features, master_group)
    scale = (torch.rand(out_features, master_groups, generator=draw) * 1e-3 + 1e-4).bfloat16()
    adapter = {}
    if rank:
        adapter = {"up": signed(out_features, rank), "down": signed(rank, in_features)}
        adapter["adapter_scale"] = torch.rand(out_features, generator=draw) * 1e-6
    clip_ratios = torch.randint(0, 256, (2, out_features, groups), generator=draw).to(torch.uint8) if groups else None
    bits = torch.randint(0, 2, (out_features, in_features), generator=draw).to(torch.uint8)
    given = packing.pack(bits, 1) if mask else None
    return StoredWeight(
        signed(out_features, in_features), scale, master_group, **adapter, clip_ratios=clip_ratios, mask=given
    )


def test_the_layout_is_as_written():
    codes = torch.zeros(1, 130, dtype=torch.uint8)
    codes[0, 0], codes[0, 17], codes[0, 33], codes[0, 70], codes[0, 127], codes[0, 128] = 1, 2, 3, 3, 2, 3
    expected = torch.zeros(64, dtype=torch.uint8)
    # Lane 0 of set 0; lane 1 of set 1; lane 6 of set 2; lane 17 of set 0; lane 31 of set 3; the next block.
    expected[0], expected[1], expected[6], expected[17], expected[31], expected[32] = 1, 3 << 2, 3 << 4, 2, 2 << 6, 3
    assert tiles.pack(codes, 2)[0].tolist() == expected.tolist()

    codes = torch.zeros(1, 128, dtype=torch.uint8)
    codes[0, 0], codes[0, 17], codes[0, 33], codes[0, 70], codes[0, 127] = 0x5A, 0x43, 0x2C, 0x71, 0x3E
    expected = torch.zeros(112, dtype=torch.uint8)
    expected[0], expected[1], expected[17], expected[38], expected[63] = 0xA, 0xC << 4, 0x3, 0x1, 0xE << 4
    expected[64], expected[65], expected[81], expected[70], expected[95] = 1, 2 << 2, 0, 3 << 4, 3 << 6
    # 0x5A, 0x43 and 0x71 have bit 6: lane 0 of set 0, lane 17 of set 0 (byte 1, bit 1), lane 6 of set 2.
    expected[96], expected[97], expected[102] = 1, 2, 1 << 4
    assert tiles.pack(codes, 7)[0].tolist() == expected.tolist()
    assert tiles.pack(codes, 8)[0].tolist() == codes[0].tolist()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(WIDTHS), st.integers(1, 5), st.sampled_from([1, 7, 127, 128, 129, 172, 300, 1023]))
def test_codes_come_back_bit_for_bit_in_as_many_bits(bits, out_features, in_features):
    codes = random_codes(out_features, in_features, bits, in_features, seed=bits)[0]
    together = tiles.pack(codes, bits)
    assert together.shape == (out_features, -(-in_features // 128) * 16 * bits)
    assert torch.equal(tiles.unpack(together, bits, in_features), codes)


@pytest.mark.parametrize("inputs_per_scale", [7, 32, 128, 172, 300, 1000])
@pytest.mark.parametrize("bits", WIDTHS)
def test_what_is_dense_is_the_stored_scale_times_steps(bits, inputs_per_scale):
    codes, scale, zero_point = random_codes(5, 300, bits, inputs_per_scale)
    weight = PackedWeight.of(codes, scale, zero_point, bits, inputs_per_scale)
    assert torch.equal(weight.unpacked(), codes)
    torch.testing.assert_close(weight.scales, scale, rtol=0 if inputs_per_scale >= 300 else 2**-11, atol=0)
    steps = affine.split_groups(codes.float(), min(inputs_per_scale, 300)) - zero_point.unsqueeze(-1)
    expected = affine.join_groups(steps * weight.scales.unsqueeze(-1), 300)
    assert torch.equal(weight.dequantize(torch.float32), expected)
    assert torch.equal(weight.dequantize(torch.bfloat16, slice(1, 3)), expected[1:3].bfloat16())
    twin = copy.deepcopy(weight)
    assert torch.equal(twin.dequantize(torch.float32), expected)
    assert twin.nbytes == weight.nbytes > 5 * 300 * bits // 8


def test_small_scales_keep_their_digits_beside_a_group_of_zeros():
    codes = torch.tensor([[0, 3, 1, 2, 2, 2, 1, 3]], dtype=torch.uint8)
    scale = torch.tensor([[3e-13, 1e-15, 1.0, 2e-15]])  # the third group is zeros, whose scale is one
    weight = PackedWeight.of(codes, scale, torch.full((1, 4), 2.0), 2, 2)
    expected = scale * torch.tensor([1.0, 1.0, 0.0, 1.0])
    torch.testing.assert_close(weight.scales, expected, rtol=2**-11, atol=0)
    assert weight.dequantize(torch.float32)[0, 4:6].tolist() == [0, 0]
    empty = PackedWeight.of(codes * 0, scale, torch.zeros(1, 4), 2, 2)
    assert bool((empty.dequantize(torch.float32) == 0).all())


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("inputs_per_scale", [32, 64, 128, 256, 1000])
def test_products_in_integers_are_those_of_rounded_activations(bits, inputs_per_scale):
    weight = random_weight(6, 700, bits, inputs_per_scale)
    x = torch.randn(3, 700, generator=generator(1))
    x[1, ::7] *= 1000
    tokens = quantize_tiles(x)
    rounded = (tokens.codes.double() * tokens.unit.unsqueeze(-1)).flatten(1)[:, :700]
    assert float((rounded - x).abs().max() / x.abs().max()) < 0.5 / 126
    dense = weight.dequantize(torch.float32).double()
    found = tile_product(x, weight, torch.ones(6))
    expected = rounded @ dense.T + 1
    magnitude = rounded.abs() @ (dense.abs() + (2**bits) * weight.scales.max().double()).T
    assert bool(((found - expected).abs() < 1e-6 * magnitude + 1e-6).all())


def test_a_token_that_is_not_finite_has_a_product_that_is_not():
    x = torch.ones(3, 300)
    x[0, 3], x[1, 299] = torch.nan, torch.inf
    found = tile_product(x, random_weight(4, 300, 4, 128))
    assert found.isnan().all(1).tolist() == [True, True, False]


@pytest.mark.parametrize("dtype", list(DTYPES.values()))
def test_exact_products_are_those_of_the_dense_weight(dtype):
    weight, bias = random_weight(9, 172, 5, 24), torch.randn(9, generator=generator(2)).to(dtype)
    x = torch.randn(2, 3, 172, generator=generator(1)).to(dtype)
    expected = F.linear(x, weight.dequantize(dtype), bias)
    torch.testing.assert_close(packed_linear(x, weight, bias, exact=True), expected, rtol=1e-2, atol=1e-2)
    assert packed_linear(x[:0], weight, bias).shape == (0, 3, 9)


def test_gradients_reach_the_activation():
    weight, x = random_weight(9, 256, 4, 128), torch.randn(1, 256, generator=generator(1)).requires_grad_()
    (gradient,) = torch.autograd.grad(packed_linear(x, weight).sum(), x)
    torch.testing.assert_close(gradient, weight.dequantize(torch.float32).sum(0, keepdim=True))


def test_what_does_not_fit_is_refused():
    weight = random_weight(4, 256, 4, 128)
    with pytest.raises(ValueError, match="128 channels, the weight 256"):
        packed_linear(torch.zeros(1, 128), weight)
    with pytest.raises(ValueError, match="float64"):
        packed_linear(torch.zeros(1, 256, dtype=torch.float64), weight)
    with pytest.raises(ValueError, match="row_scale is"):
        PackedWeight((4, 256), 4, 128, weight.codes, weight.scale, weight.row_scale[:3], weight.zero_point)
    with pytest.raises(ValueError, match="one group"):
        PackedWeight((4, 256), 4, 128, weight.codes, None, weight.row_scale, weight.zero_point)
    with pytest.raises(ValueError, match="codes is"):
        PackedWeight((4, 256), 5, 128, weight.codes, weight.scale, weight.row_scale, weight.zero_point)
    with pytest.raises(ValueError, match="2 to 8 bits"):
        PackedWeight((4, 256), 9, 128, weight.codes, weight.scale, weight.row_scale, weight.zero_point)
    with pytest.raises(ValueError, match="not multiplied in integers"):
        tile_product(torch.zeros(1, 256), random_weight(4, 256, 4, 24))


def test_a_compiler_is_given_an_operator():
    weight, bias = random_weight(6, 256, 4, 128), torch.ones(6)
    x = torch.randn(2, 3, 256, generator=generator(1))

    def run(x):
        return packed_linear(x * 2, weight, bias)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(compiled, run(x))
    held = weight.codes, weight.scale, weight.row_scale, weight.zero_point
    library.opcheck(torch.ops.quept.packed_linear.default, (x, *held, bias, 4, 128, False))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
def test_a_stored_weight_is_rebuilt_within_half_a_step(bits, symmetric):
    store = random_store(5, 300, 128, 4, 0, False)
    weight = rebuild(store, bits, 64, symmetric)
    error = (weight.dequantize(torch.float32) - store.weight()).abs()
    step = affine.join_groups(weight.scales.unsqueeze(-1).expand(-1, -1, 64), 300)
    rounding = 2**bits * 2.0**-11 + 0.5  # of the scale to float16, and to the code
    assert bool((error <= step * (rounding + 0.5 * (not symmetric))).all())


def test_what_is_stored_has_to_fit():
    store = random_store(5, 300, 128, 4, 3, True)
    fields = dict(vars(store))
    for name, complaint in (("master_scale",) * 2, ("up",) * 2, ("down", "up"), ("adapter_scale",) * 2, ("mask",) * 2):
        with pytest.raises(ValueError, match=f"^{complaint} is"):
            StoredWeight(**(fields | {name: getattr(store, name)[:-1]}))
    with pytest.raises(ValueError, match="together"):
        StoredWeight(**(fields | {"up": None}))
    with pytest.raises(ValueError, match="clip_ratios is"):
        rebuild(store, 4, 64, False)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 172), (2, 256)])
def test_a_master_is_packed_as_its_codes_are(shape):
    generator = torch.Generator().manual_seed(0)
    master = torch.randint(-127, 128, shape, generator=generator).to(torch.int8)
    scale = (torch.rand(shape[0], 1, generator=generator) + 0.1).to(torch.bfloat16)
    codes = (master.to(torch.int16) + 128).to(torch.uint8)
    expected = PackedWeight.of(codes, scale.float(), torch.full((shape[0], 1), 128.0), 8, shape[1])
    found = PackedWeight.of_master(master, scale)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.row_scale, expected.row_scale)
    assert torch.equal(found.zero_point, expected.zero_point)
