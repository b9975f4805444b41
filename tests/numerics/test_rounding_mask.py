import pytest
import torch

from quept.numerics import affine, clipping, rounding_mask


def case(bits, inputs=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    grouped = affine.split_groups(torch.randn(16, inputs, generator=generator), 8)
    offset = torch.rand(grouped.shape, generator=generator) - 0.5
    return grouped, affine.grid(grouped, bits), offset


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_plane_rebuilds_the_codes_of_any_offset_bit_for_bit(bits):
    grouped, to, offset = case(bits)
    mask = rounding_mask.flipped(grouped, to, offset)
    rebuilt = rounding_mask.mask_offset(grouped, to, mask)
    assert 0 < int(mask.sum()) < mask.numel()
    assert torch.equal(affine.codes(grouped, to, rebuilt), affine.codes(grouped, to, offset))
    assert torch.equal(affine.fake_quantize(grouped, to, rebuilt), affine.fake_quantize(grouped, to, offset))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_plane_of_zeros_is_rounding_to_nearest_and_one_of_ones_the_other_neighbour(bits):
    grouped, to, _ = case(bits)
    nearest = affine.codes(grouped, to).int()
    zeros = rounding_mask.mask_offset(grouped, to, torch.zeros_like(grouped, dtype=torch.bool))
    ones = rounding_mask.mask_offset(grouped, to, torch.ones_like(grouped, dtype=torch.bool))
    assert torch.equal(affine.codes(grouped, to, zeros).int(), nearest)
    other = affine.codes(grouped, to, ones).int()
    free = (grouped / to.scale + to.zero_point - nearest).abs() > 1e-6
    inside = (other > 0) & (other < to.maximum)
    assert ((other - nearest).abs()[free & inside] == 1).all()


def test_weights_on_a_code_and_exact_halves_keep_a_defined_code():
    grouped = torch.tensor([[[-1.0, 0.0, 1.0, 0.5, 1.5, 2.0]]])
    to = affine.Grid(torch.ones(1, 1, 1), torch.ones(1, 1, 1), 3)
    for value in (-0.5, 0.5):
        offset = torch.full_like(grouped, value)
        mask = rounding_mask.flipped(grouped, to, offset)
        assert not mask[grouped == grouped.round()].any()
        rebuilt = affine.codes(grouped, to, rounding_mask.mask_offset(grouped, to, mask))
        on_halves = grouped != grouped.round()
        assert torch.equal(rebuilt[on_halves], affine.codes(grouped, to, offset)[on_halves])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_best_share_is_no_worse_than_any_other_and_follows_the_importance(bits):
    generator = torch.Generator().manual_seed(bits)
    grouped = affine.split_groups(torch.randn(64, 128, generator=generator), 64)
    plain = torch.ones(1, 2, 64)

    def error(clip_ratio, importance):
        low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
        rounded = affine.fake_quantize(grouped, affine.grid_between(low * clip_ratio, high * clip_ratio, bits))
        return ((rounded - grouped).square() * importance).sum(-1)

    best = clipping.best_clip_ratio(grouped, bits, plain)
    for clip_ratio in torch.linspace(1.0, clipping.NARROWEST, clipping.CANDIDATES).tolist():
        assert (error(best, plain) <= error(clip_ratio, plain) * (1 + 1e-5)).all()
    assert error(best, plain).sum() < (0.9 if bits < 4 else 1.0) * error(1.0, plain).sum()
    # Where the extremes count for more, less is clipped.
    extremes = (grouped == grouped.amax(-1, keepdim=True)) | (grouped == grouped.amin(-1, keepdim=True))
    wider = torch.cat(
        [clipping.best_clip_ratio(g[None], bits, 1 + 1e4 * e[None]) for g, e in zip(grouped, extremes, strict=True)]
    )
    assert wider.mean() > best.mean() + 0.02


def test_a_group_of_zeros_keeps_its_range():
    assert torch.equal(clipping.best_clip_ratio(torch.zeros(2, 3, 4), 2, torch.ones(1, 3, 4)), torch.ones(2, 3, 1))
