"""How far a reparameterisation goes, and that none of it changes a block (its exactness: test_vision)."""

import pytest
import torch

import quept
from quept.models import BlockContext, architecture_of
from quept.transforms import Reparameterize
from quept.transforms.reparameterization import STRENGTHS, common_range

VISION = quept.load_recipe("vision")


def moved(tiny_classifier, strength, rows):
    """What became of the inputs of the first norm's consumers, and the change of norm and linear together."""
    model = tiny_classifier("vit")
    context = BlockContext.of(architecture_of("vit"), model, 0)
    block = model.vit.layers[0]
    linear, norm = block.attention.q_proj, block.layernorm_before
    states = torch.randn(7, 32, generator=torch.Generator().manual_seed(3))
    before = linear(norm(states))
    settings = {"enabled": True, "strength": strength}
    recipe = VISION.updated(reparameterization=settings)
    inputs = {path: rows for path in Reparameterize(recipe).observed_inputs(context)}
    found = Reparameterize(recipe).fold(block, context, inputs)
    torch.testing.assert_close(linear(norm(states)), before, rtol=1e-4, atol=1e-4)
    return found["attention.q_proj"]


def rows_of(widths):
    drawn = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    return drawn * widths + widths


@torch.no_grad()
@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_a_strength_is_a_power_of_the_scale_and_a_share_of_the_shift(strength, tiny_classifier):
    rows = rows_of(torch.linspace(0.1, 4, 32))
    whole = common_range(rows, shifted=True)
    part = moved(tiny_classifier, strength, rows)
    torch.testing.assert_close(part.scale, whole[0] ** strength)
    torch.testing.assert_close(part.shift, whole[1] * strength)


@torch.no_grad()
def test_the_search_moves_channels_that_differ_and_leaves_alike_ones(tiny_classifier):
    alike = moved(tiny_classifier, "search", rows_of(torch.ones(32)))
    spread = torch.ones(32)
    spread[::8] = 30.0
    apart = moved(tiny_classifier, "search", rows_of(spread))
    torch.testing.assert_close(alike.scale, torch.ones(32), rtol=0.1, atol=0.1)
    assert apart.scale[0] / apart.scale[1] > 2
    powers = [common_range(rows_of(spread), shifted=True)[0] ** share for share in STRENGTHS]
    assert any(torch.allclose(apart.scale, power) for power in powers)


def test_one_range_covers_all_channels():
    rows = rows_of(torch.linspace(0.1, 4, 32))
    scale, shift = common_range(rows, shifted=True)
    low, high = ((rows - shift) / scale).quantile(torch.tensor([0.01, 0.99]), 0)
    assert float((high - low).max() / (high - low).min()) < 1.3
    scale, shift = common_range(rows, shifted=False)
    assert not shift.any()
    assert common_range(torch.zeros(10, 4), shifted=True)[0].equal(torch.ones(4))
