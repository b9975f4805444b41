import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from quept.config import Adapter, BitGroups, Granularity, WeightSpec
from quept.errors import InvalidInput
from quept.layers import ElasticLinear, WeightCache, nearest
from quept.layers.linear import weight_of
from quept.layers.replace import elastic_like, replace_linears
from quept.numerics import affine

WIDTHS = range(2, 9)
ENTRIES = ("weight", "scale", "rounding")
KINDS = ("cascade", "shared", "independent", "none")
OUT, IN, RANK, GROUP_SIZE = 6, 20, 2, 8  # twenty inputs are no multiple of eight


def spec_for(entry="weight", kind="cascade", bits=WIDTHS, rank=RANK):
    return WeightSpec(
        groups=BitGroups.partition(bits),
        granularity=Granularity(group_size=GROUP_SIZE, grouped_bits=(2, 3)),
        adapter=Adapter(kind=kind, entry=entry, rank=rank),
    )


def elastic(entry="weight", kind="cascade", *, learned=True, dtype=torch.float32, bias=True, seed=0):
    """A small layer; `learned` gives its adapter and clipping values as if it had been calibrated."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(IN, OUT, bias=bias)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    layer = ElasticLinear.like(linear.to(dtype), spec_for(entry, kind), "block.linear")
    with torch.no_grad():
        layer.A.copy_(torch.empty(layer.A.shape).uniform_(-(IN**-0.5), IN**-0.5, generator=generator))
    if learned:
        with torch.no_grad():
            layer.B.copy_(torch.randn(layer.B.shape, generator=generator))
            for logits in layer.clipping.values():
                logits.copy_(torch.randn(logits.shape, generator=generator) + 1)
    return layer


def unclipped(layer):
    with torch.no_grad():
        for logits in layer.clipping.values():
            logits.fill_(40.0)  # sigmoid(40) is 1 in float32
    return layer


def weight_by_loops(layer, bits):
    """The weight at a bit-width out of the method's formulas, row by row and group by group."""
    adapter, f = layer.spec.adapter, np.float32
    position = next(i for i, group in enumerate(layer.spec.groups.groups) if bits in group)
    start, stop = {
        "cascade": (0, RANK * (position + 1)),
        "shared": (0, RANK * len(layer.spec.groups)),
        "independent": (RANK * position, RANK * (position + 1)),
        "none": (0, 0),
    }[adapter.kind]
    factors = (layer.B.detach().double().numpy(), layer.A.detach().double().numpy())
    product = sum((np.outer(factors[0][:, r], factors[1][r]) for r in range(start, stop)), np.zeros((OUT, IN))).astype(
        f
    )
    master = layer.weight.detach().float().numpy()
    if adapter.entry == "weight":
        master = master + product
    logits = layer.clipping[str(bits)].detach().double().numpy()
    size = GROUP_SIZE if bits in (2, 3) else IN
    result = np.zeros((OUT, IN), dtype=f)
    for row in range(OUT):
        for group, first in enumerate(range(0, IN, size)):
            part = slice(first, min(first + size, IN))
            low_clip_ratio, high_clip_ratio = (1 / (1 + np.exp(-logits[end, row, group])) for end in (0, 1))
            values = master[row, part]
            low, high = f(min(values.min(), 0) * low_clip_ratio), f(max(values.max(), 0) * high_clip_ratio)
            scale = f((high - low) / f(2**bits - 1))
            zero_point = np.rint(-low / scale)
            steps = values / scale
            if adapter.entry == "scale":
                steps = np.rint(steps + product[row, part])
            elif adapter.entry == "rounding" and adapter.kind != "none":
                # AdaRound's rectified sigmoid, started where it gives each weight's own fraction.
                fraction = (steps - np.floor(steps)).astype(np.float64)
                start_logit = np.log((fraction + 0.1) / (1.1 - fraction))
                up = 1.2 / (1 + np.exp(-(start_logit + product[row, part]))) - 0.1
                steps = np.floor(steps) + (up >= 0.5)
            else:
                steps = np.rint(steps)
            codes = np.clip(steps + zero_point, 0, 2**bits - 1)
            result[row, part] = (codes - zero_point) * scale
    return torch.from_numpy(result)


# The weight at a width


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_without_adapter_and_clipping_a_bit_width_is_rounding_to_nearest(entry, bits):
    layer = unclipped(elastic(entry, learned=False))
    assert layer.B.numel() > 0
    assert not layer.B.any()
    assert bool(layer.A.any())
    torch.testing.assert_close(layer.derive(bits), layer.nearest(bits))
    assert not torch.equal(layer.nearest(bits), layer.weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_the_weight_at_every_bit_width_equals_the_methods_formulas(entry, kind):
    layer = elastic(entry, kind)
    for bits in WIDTHS:
        torch.testing.assert_close(layer.derive(bits).detach(), weight_by_loops(layer, bits), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("entry", ENTRIES)
def test_dequantized_codes_equal_the_derived_weight_bit_for_bit(entry, dtype):
    layer = elastic(entry, dtype=dtype)
    for bits in WIDTHS:
        codes, grid = layer.codes(bits)
        assert codes.dtype == torch.uint8
        assert codes.shape == (OUT, layer.scales_per_row(bits), GROUP_SIZE if bits in (2, 3) else IN)
        assert grid.scale.shape == grid.zero_point.shape == (OUT, layer.scales_per_row(bits), 1)
        assert int(codes.max()) <= grid.maximum == 2**bits - 1
        weight = affine.join_groups(affine.dequantize(codes, grid), IN).to(dtype)
        derived = layer.derive(bits)
        assert derived.dtype == dtype
        assert torch.equal(weight, derived)


def test_nearest_is_the_rounding_of_the_weight_before_it_was_smoothed():
    layer, plain = elastic(), elastic()
    scale = torch.exp2(torch.arange(IN).remainder(5) - 2.0)
    with torch.no_grad():
        layer.weight.mul_(scale)
        layer.input_scale.copy_(scale)
    for bits in WIDTHS:
        assert torch.equal(layer.nearest(bits) / scale, plain.nearest(bits))


def test_scales_per_row_count_the_ragged_last_group():
    layer = elastic()
    assert [layer.scales_per_row(bits) for bits in (2, 3, 4, 8)] == [3, 3, 1, 1]


def test_a_rank_above_the_layers_size_is_refused_with_its_name():
    linear = nn.Linear(IN, OUT)
    assert ElasticLinear.like(linear, spec_for(rank=OUT), "block.linear").A.shape[0] == 4 * OUT
    with pytest.raises(InvalidInput, match=rf"rank {OUT + 1} .*block\.linear, {OUT} x {IN}; .*at most {OUT}\."):
        ElasticLinear.like(linear, spec_for(rank=OUT + 1), "block.linear")
    # Without an adapter no rank is needed, so none is too large.
    ElasticLinear.like(linear, spec_for(kind="none", rank=1000), "block.linear")


def test_a_bit_width_that_was_not_calibrated_cannot_be_derived():
    layer = ElasticLinear.like(nn.Linear(IN, OUT), spec_for(bits=(2, 4)), "block.linear")
    with pytest.raises(InvalidInput, match=r"3 bits are not in the calibrated set \[2, 4\]"):
        layer.derive(3)


# The forward pass


@pytest.mark.parametrize("bias", [False, True])
def test_the_forward_pass_multiplies_by_the_weight_in_force_and_adds_the_bias(bias):
    layer = elastic(bias=bias)
    assert (layer.bias is not None) == bias
    hidden = torch.randn(2, 3, IN, generator=torch.Generator().manual_seed(1))
    offset = layer.bias if bias else torch.zeros(OUT)
    for bits in (None, *WIDTHS):
        layer.bits = bits
        weight = layer.weight if bits is None else layer.derive(bits)
        torch.testing.assert_close(layer(hidden), hidden @ weight.T + offset)
    with nearest([layer], 3, None):
        torch.testing.assert_close(layer(hidden), hidden @ layer.nearest(3).T + offset)
    assert layer.bits == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_layer_runs_at_full_precision_like_the_linear_it_came_from(dtype):
    linear = nn.Linear(IN, OUT).to(dtype)
    hidden = torch.randn(3, IN, dtype=dtype)
    layer = ElasticLinear.like(linear, spec_for(), "x")
    assert torch.equal(layer(hidden), linear(hidden))


@pytest.mark.parametrize("make", [lambda: nn.Linear(IN, OUT), lambda: Conv1D(OUT, IN)])
def test_the_weight_of_a_linear_is_a_view_that_can_be_scaled_in_place(make):
    linear, hidden = make().requires_grad_(False), torch.randn(3, IN)
    scale = torch.exp2(torch.arange(IN).remainder(5) - 2.0)
    before = linear(hidden)
    assert weight_of(linear).shape == (OUT, IN)
    weight_of(linear).mul_(scale)
    torch.testing.assert_close(linear(hidden / scale), before)


def test_a_conv1d_becomes_a_layer_with_the_same_output():
    conv = Conv1D(OUT, IN)
    nn.init.normal_(conv.weight)
    nn.init.normal_(conv.bias)
    hidden = torch.randn(2, 3, IN)
    layer = ElasticLinear.like(conv, spec_for(), "x")
    assert (layer.out_features, layer.in_features) == (OUT, IN)
    assert layer.weight.is_contiguous()
    torch.testing.assert_close(layer(hidden), conv(hidden))


def test_replacing_linears_leaves_the_blocks_function_and_its_other_modules():
    block = nn.Sequential()
    block.add_module("first", nn.Linear(IN, OUT))
    block.add_module("inner", nn.Sequential(nn.Linear(OUT, OUT), nn.GELU()))
    hidden = torch.randn(2, IN)
    before, gelu = block(hidden), block.inner[1]
    replaced = replace_linears(block, "layers.3", dict.fromkeys(("first", "inner.0"), spec_for()), {}, elastic_like)
    assert {name: layer.path for name, layer in replaced.items()} == {
        "first": "layers.3.first",
        "inner.0": "layers.3.inner.0",
    }
    assert block.first is replaced["first"]
    assert block.inner[0] is replaced["inner.0"]
    assert block.inner[1] is gelu
    assert torch.equal(block(hidden), before)


# What must stay in float32


@pytest.mark.parametrize(
    ("convert", "dtype"),
    [
        (lambda layer: layer.half(), torch.float16),
        (lambda layer: layer.to(torch.bfloat16), torch.bfloat16),
        (lambda layer: layer.to(torch.float64), torch.float64),
        (lambda layer: nn.Sequential(layer).to("cpu", torch.float16)[0], torch.float16),
    ],
)
def test_changing_the_dtype_leaves_the_learned_parameters_exactly_as_they_are(convert, dtype):
    layer = elastic()
    with torch.no_grad():
        layer.input_scale.copy_(torch.linspace(0.1, 3, IN))
    learned = {"A": layer.A, "B": layer.B, "input_scale": layer.input_scale}
    learned |= {f"clipping.{bits}": logits for bits, logits in layer.clipping.items()}
    before = {name: value.detach().clone() for name, value in learned.items()}
    layer = convert(layer)
    assert layer.weight.dtype == layer.bias.dtype == dtype
    after = layer.state_dict()
    for name, value in before.items():
        assert after[name].dtype == torch.float32
        assert torch.equal(after[name], value)
    layer.bits = 3
    assert layer(torch.ones(1, IN, dtype=dtype)).dtype == dtype
    assert {name for name, _ in layer.named_parameters()} >= {"A", "B", "clipping.2", "clipping.8"}


# Derived weights kept in memory


def counted(layer):
    """The layer with a weight cache, and the list of bit-widths it has derived."""
    derived, original = [], layer.derive

    def derive(bits):
        derived.append(bits)
        return original(bits)

    layer.derive, layer.weight_cache = derive, WeightCache()
    return layer, derived


def test_the_forward_pass_derives_a_bit_width_once_and_gives_the_same_output():
    layer, derived = counted(elastic())
    hidden = torch.randn(2, IN)
    outputs = []
    for bits in (2, 8, 2, 8):
        layer.bits = bits
        outputs.append(layer(hidden))
    assert derived == [2, 8]
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert not torch.equal(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], F.linear(hidden, elastic().derive(2), layer.bias))


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.load_state_dict(elastic(seed=1).state_dict()),
        lambda layer: layer.load_state_dict(elastic(seed=1).state_dict(), assign=True),
        lambda layer: nn.Sequential(layer).load_state_dict(nn.Sequential(elastic(seed=1)).state_dict()),
    ],
)
def test_loading_a_state_forgets_what_was_derived_before(change):
    layer, derived = counted(elastic())
    layer.bits = 3
    layer(torch.ones(1, IN))
    change(layer)
    hidden = torch.randn(2, IN)
    expected = elastic(seed=1)
    expected.bits = 3
    assert torch.equal(layer(hidden), expected(hidden))
    assert derived == [3, 3]


def test_moving_a_layer_forgets_what_was_derived_before():
    layer, derived = counted(elastic())
    layer.bits = 3
    layer(torch.ones(1, IN))
    nn.Sequential(layer).to(torch.float64)
    assert layer.weight_cache.resident == 0
    assert layer(torch.ones(1, IN, dtype=torch.float64)).dtype == torch.float64
    assert derived == [3, 3]
