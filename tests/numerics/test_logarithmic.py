"""The logarithmic grid against a loop, and its gradients against differences."""

import math

import pytest
import torch

from quept.numerics.activations import Sample, fake_quantize_tensor
from quept.numerics.logarithmic import best_grid, fake_quantize


def at(scale, density, bits):
    return torch.tensor(scale), torch.tensor(density), torch.tensor(float(2**bits - 1))


def probabilities(count=4000):
    return torch.randn(count // 50, 50, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("density", [0.5, 1.0, 2.8])
def test_each_value_goes_to_the_level_that_is_nearest_in_its_logarithm(bits, density):
    values, highest = torch.cat([torch.zeros(1), probabilities().flatten(), torch.ones(1)]), 2**bits - 1
    found = fake_quantize(values, *at(0.8, density, bits))
    for value, level in zip(values.tolist()[::37], found.tolist()[::37], strict=True):
        code = highest if value == 0 else min(max(round(-density * math.log2(value / 0.8)), 0), highest)
        expected = 0.0 if code == highest else 0.8 * 2 ** (-code / density)
        assert level == pytest.approx(expected, rel=1e-5)
    assert len(found.unique()) <= 2**bits
    assert found.max() == pytest.approx(0.8)


def test_zero_and_the_smallest_values_become_zero():
    values = torch.tensor([0.0, 1e-30, 1e-45])
    assert not fake_quantize(values, *at(1.0, 1.0, 4)).any()


def test_gradients_are_those_of_the_level_with_its_code_held():
    values = probabilities().requires_grad_(True)
    scale, density, highest = at(0.9, 1.3, 4)
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(1))

    def loss(scale, density):
        code = (-1.3 * (values.detach() / 0.9).clamp_min(1e-30).log2()).round().clamp(0, 15)
        return ((scale * 2 ** (-code / density)).masked_fill(code == 15, 0) * weights).sum()

    held = [scale.clone().requires_grad_(True), density.clone().requires_grad_(True)]
    expected = torch.autograd.grad(loss(*held), held)
    scale.requires_grad_(True)
    density.requires_grad_(True)
    total = (fake_quantize(values, scale, density, highest) * weights).sum()
    found = torch.autograd.grad(total, (scale, density, values))
    torch.testing.assert_close(found[:2], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[2], weights * (values <= 0.9))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_search_finds_a_grid_that_beats_the_uniform_one_on_probabilities(bits):
    values = probabilities()
    scale, density = best_grid(Sample.of(values), bits)
    rounded = fake_quantize(values, *at(scale, density, bits))
    step = values.max() / (2**bits - 1)
    uniform = fake_quantize_tensor(values, step, torch.zeros(()), torch.tensor(float(2**bits - 1)))
    assert (rounded - values).square().sum() < (uniform - values).square().sum()
    for other in ((scale * 0.7, density), (scale, density * 4), (scale, density / 4)):
        worse = fake_quantize(values, *at(*other, bits))
        assert (rounded - values).square().sum() <= (worse - values).square().sum()


def test_zeros_have_a_grid():
    scale, density = best_grid(Sample.of(torch.zeros(100)), 4)
    assert scale > 0
    assert density > 0


def test_results_have_the_dtype_of_the_values():
    assert fake_quantize(probabilities().bfloat16(), *at(1.0, 2.0, 4)).dtype == torch.bfloat16
