"""Quantizers of whole tensors: where ranges start, what they learn, how they are stored."""

import pytest
import torch
from naive import clamp
from torch import nn

from quept.config import Activations
from quept.layers import learned_names, stored_tensors
from quept.layers.attention import AttentionOperands
from quept.layers.quantizers import LogQuantizer, TensorQuantizer, TokenQuantizer, quantizer
from quept.numerics.activations import Sample, best_range, fake_quantize_tensor
from quept.numerics.affine import round_straight_through

CPU = torch.device("cpu")
TENSOR = Activations(bits=(2, 4, 8), range="tensor", products=True)


def values(rows=200, seed=0):
    """Skewed, with a few outliers."""
    drawn = torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed))
    drawn = torch.nn.functional.gelu(drawn * 2)
    drawn[0, 0] = 60.0
    return drawn


def placed(start, spec=TENSOR):
    made = TensorQuantizer(spec, CPU)
    made.start_observing()
    made.observe(values())
    made.init_range(start)
    return made


@torch.no_grad()
def error(made, bits):
    return float((made(values(), bits) - values()).square().sum())


def test_min_max_rounds_every_value_by_half_a_step_at_most():
    made = placed("min-max")
    for bits in (2, 4, 8):
        scale, zero_point, highest = made.grid(bits)
        assert (made(values(), bits) - values()).abs().max() <= scale * 0.5001
        assert zero_point == zero_point.round()
        assert highest == 2**bits - 1
        assert len(made(values(), bits).unique()) <= 2**bits
    assert torch.equal(made.extremes, torch.stack(values().aminmax()))


def test_searched_ranges_round_better_than_percentiles_and_these_than_extremes():
    for bits in (2, 4):
        found = [error(placed(start), bits) for start in ("min-max", "percentile", "search")]
        assert found[2] <= found[1] <= found[0]
        assert found[2] < found[0]


def test_a_sample_keeps_the_tail_and_stands_for_all():
    rows = torch.randn(400, 256, generator=torch.Generator().manual_seed(0)) ** 3
    sample = Sample.of(rows, count=1000)
    assert len(sample.values) < 1100
    assert sample.weights.sum() == pytest.approx(rows.numel(), rel=1e-3)
    assert {float(rows.max()), float(rows.min())} <= set(sample.values.tolist())
    expected = torch.quantile(rows.flatten()[:100000], torch.tensor([0.001, 0.999]))
    for found, wanted in zip(sample.quantiles([0.001, 0.999]), expected.tolist(), strict=True):
        assert found == pytest.approx(wanted, rel=0.1)
    importance = torch.rand(256, generator=torch.Generator().manual_seed(1))
    weighed = Sample.of(rows, importance, count=1000)
    assert weighed.weights.sum() == pytest.approx(float(importance.sum()) * 400, rel=0.05)
    halves = Sample.joined([Sample.of(rows[:200], count=1000), Sample.of(rows[200:], count=1000)])
    assert halves.weights.sum() == pytest.approx(rows.numel(), rel=1e-3)


def test_many_bits_keep_the_outliers_that_few_bits_give_up():
    rows = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    rows[7, 3] = 40.0
    extremes = torch.stack(rows.aminmax())
    reach = [best_range(Sample.of(rows), bits, extremes, "search")[1] for bits in (2, 8)]
    assert reach[0] < 10 < reach[1]


def test_importance_weighs_the_channels():
    sample = values()
    sample[:, 3] *= 10
    heavy = torch.ones(16)
    heavy[3] = 100.0
    extremes = torch.stack(sample.aminmax())
    for_all = best_range(Sample.of(sample, torch.ones(16)), 4, extremes, "search")
    for_one = best_range(Sample.of(sample, heavy), 4, extremes, "search")
    assert sum(for_one) > sum(for_all)


@pytest.mark.parametrize("sample", [torch.zeros(50, 4), -torch.ones(50, 4), torch.ones(50, 4) * 1e-30])
@pytest.mark.parametrize("start", ["min-max", "percentile", "search"])
def test_constant_tensors_have_ranges(sample, start):
    made = TensorQuantizer(TENSOR, CPU)
    made.init_range(start, sample)
    rounded = made(sample, 4)
    assert torch.isfinite(rounded).all()
    torch.testing.assert_close(rounded, sample, rtol=0.1, atol=1e-6)


def test_gradients_are_those_of_the_definition():
    scale, zero_point, highest = torch.tensor(0.3), torch.tensor(2.0), torch.tensor(7.0)
    weights = torch.randn(200, 16, generator=torch.Generator().manual_seed(1))

    def by_autograd(x, s, z):
        # A value that rounds to the last code is in range.
        return (clamp(round_straight_through(x / s) + z, 0.0, 7.0) - z) * s

    gradients = []
    for function in (by_autograd, lambda x, s, z: fake_quantize_tensor(x, s, z, highest)):
        inputs = [each.clone().requires_grad_(True) for each in (values(), scale, zero_point)]
        gradients.append(torch.autograd.grad((function(*inputs) * weights).sum(), inputs))
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_ranges_learn():
    drawn = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    made = TensorQuantizer(TENSOR, CPU)
    made.init_range("min-max", drawn)
    parameter = made.trained()["2"].requires_grad_(True)
    optimizer, errors = torch.optim.Adam([parameter], lr=0.05), []
    for _ in range(60):
        optimizer.zero_grad()
        squared = (made(drawn, 2) - drawn).square().mean()
        squared.backward()
        optimizer.step()
        errors.append(squared.item())
    assert min(errors) < errors[0] / 2


def test_the_baseline_is_the_whole_range_whatever_was_learned():
    made = placed("search")
    torch.testing.assert_close(made.round(values(), made.min_max_grid(4)), placed("min-max")(values(), 4))
    uniform = LogQuantizer(TENSOR, CPU)
    uniform.start_observing()
    clip_ratios = values().softmax(-1)
    uniform.observe(clip_ratios)
    uniform.init_range("search")
    levels = uniform.round(clip_ratios, uniform.min_max_grid(4)).unique()
    torch.testing.assert_close(levels.diff(), levels.diff()[:1].expand(len(levels) - 1), rtol=1, atol=1e-3)


def test_an_override_counts_for_every_bit_width():
    made = placed("search")
    made.override = made.grid(2)
    assert made(values(), 8).equal(made(values(), 2))
    assert made(values(), None).equal(made(values(), 2))
    made.override = None
    assert made(values(), None).equal(values())


@pytest.mark.parametrize("kind", [TensorQuantizer, LogQuantizer, TokenQuantizer])
def test_what_is_learned_stays_in_float32_and_is_stored(kind):
    holder = nn.Module()
    holder.quantizer = kind(TENSOR, CPU)
    assert {f"quantizer.{name}" for name in holder.quantizer.learned()} == learned_names(holder)
    assert learned_names(holder) == set(stored_tensors(holder))
    holder.to(torch.bfloat16)
    assert {tensor.dtype for tensor in holder.state_dict().values()} == {torch.float32}


def test_settings_choose_the_kind():
    assert isinstance(quantizer(TENSOR, CPU), TensorQuantizer)
    assert isinstance(quantizer(Activations(bits=(4,)), CPU), TokenQuantizer)
    assert isinstance(AttentionOperands("a", TENSOR, CPU).probabilities, TensorQuantizer)
    assert isinstance(AttentionOperands("a", TENSOR.updated(softmax="log"), CPU).probabilities, LogQuantizer)


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, "added", "boolean"])
def test_attention_without_rounding_is_attention(mask):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 7, 8, generator=generator) for _ in range(3))
    masks = {"added": torch.randn(2, 1, 7, 7, generator=generator), "boolean": torch.ones(7, 7).tril().bool()}
    products = AttentionOperands("a", TENSOR, CPU)
    given = None if mask is None else masks[mask]
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, given, scale=0.3)
    torch.testing.assert_close(products(query, key, value, given, 0.3), expected.transpose(1, 2))


@torch.no_grad()
def test_attention_rounds_all_four_operands():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 7, 8, generator=generator) for _ in range(3))
    products = AttentionOperands("a", TENSOR, CPU)
    assert not products.are_rounded
    with products.observing():
        assert products.are_rounded
        products(query, key, value, None, 0.3)
    for each in products.quantizers():
        each.init_range("search")
    products.bits = 2
    rounded = products(query, key, value, None, 0.3)
    scores = products.queries(query, 2) @ products.keys(key, 2).transpose(-1, -2) * 0.3
    expected = products.probabilities(scores.softmax(-1), 2) @ products.values(value, 2)
    torch.testing.assert_close(rounded, expected.transpose(1, 2))
    for each in products.quantizers():
        each.override = each.min_max_grid(8)
    assert not products(query, key, value, None, 0.3).equal(rounded)
