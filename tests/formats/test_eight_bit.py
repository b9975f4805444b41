import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quept.formats import eight_bit


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    inputs=st.integers(1, 70),
    size=st.integers(1, 80),
    exponent=st.integers(-148, 120),
    seed=st.integers(0, 1000),
)
def test_the_master_is_within_half_a_scale_and_no_code_is_clipped(rows, inputs, size, exponent, seed):
    weight = random(rows, inputs, seed=seed) * 2.0**exponent
    size, groups = eight_bit.master_groups(inputs, size)
    codes, scale = eight_bit.round_master(weight, size)
    assert codes.dtype == torch.int8
    assert scale.dtype == torch.bfloat16
    assert scale.shape == (rows, groups)
    assert int(codes.min()) >= -127
    assert bool((scale.float() >= eight_bit.SMALLEST).all())
    wide = scale.double().repeat_interleave(size, 1)[:, :inputs]
    dense = eight_bit.dense_master(codes, scale, size)
    assert dense.dtype == torch.float32
    # Exact: the product of a code and a scale has no more digits than float32 holds.
    assert torch.equal(dense.double(), codes.double() * wide)
    assert bool(((weight.double() - dense.double()).abs() <= wide / 2 * (1 + 1e-6)).all())


def test_the_largest_weight_of_a_group_takes_nearly_the_whole_range_and_zeros_have_scale_one():
    weight = random(50, 64)
    weight[3] = 0
    codes, scale = eight_bit.round_master(weight, 16)
    highest = codes.view(50, 4, 16).abs().amax(-1)
    assert int(highest[torch.arange(50) != 3].min()) >= 126
    assert scale[3].tolist() == [1.0] * 4
    assert not codes[3].any()


@pytest.mark.parametrize("rank", [1, 5, 64, 1024])
def test_the_product_of_factors_is_the_exact_sum_and_close_to_what_was_rounded(rank):
    up, down = random(7, rank) * 3, random(rank, 33, seed=1) * torch.logspace(-3, 3, rank).unsqueeze(1)
    up = up / torch.logspace(-3, 3, rank)
    codes = eight_bit.round_factors(up, down)
    assert [value.dtype for value in codes] == [torch.int8, torch.int8, torch.float32]
    assert bool((codes[1].abs().amax(1) == 127).all())  # every component is brought to the same height
    exact = codes[0].numpy().astype(np.int64) @ codes[1].numpy().astype(np.int64)
    expected = exact.astype(np.float32) * codes[2].numpy()[:, None]
    assert np.array_equal(eight_bit.product(*codes).numpy(), expected)
    error = (eight_bit.product(*codes) - up @ down).norm() / (up @ down).norm()
    assert error < 0.02


def test_the_largest_sum_of_codes_is_exact():
    full = torch.full((2, 1024), 127, dtype=torch.int8)
    assert eight_bit.product(full, full.T.contiguous(), torch.ones(2)).tolist() == [[127.0 * 127 * 1024] * 2] * 2


def test_components_of_zero_are_kept_as_such():
    up, down, scale = eight_bit.round_factors(torch.zeros(3, 2), torch.zeros(2, 4))
    assert not up.any()
    assert not down.any()
    assert scale.tolist() == [1.0] * 3


@pytest.mark.parametrize("bits", [4, 8])
def test_shares_are_rounded_to_the_nearest_and_a_whole_range_stays_whole(bits):
    clip_ratio = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0))
    clip_ratio[0, 0, 0], clip_ratio[1, 4, 2] = 1.0, 0.0
    kept = eight_bit.round_clip_ratios(clip_ratio, bits)
    assert kept.dtype == torch.uint8
    assert kept.shape == ((2, 5, 3) if bits == 8 else (5, 3))
    back = eight_bit.clip_ratios(kept, bits)
    assert back[0, 0, 0] == 1
    assert back[1, 4, 2] == 2.0**-bits
    inside = clip_ratio > 2.0**-bits
    assert bool(((back - clip_ratio).abs()[inside] <= 2.0 ** -(bits + 1)).all())
    assert torch.equal(back, (eight_bit.byte_clip_ratios(kept, bits).float() + 1) / 256)
    assert torch.equal(eight_bit.round_clip_ratios(back, bits), kept)
