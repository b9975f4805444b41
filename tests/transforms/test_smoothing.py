"""Smoothing: what the search chooses, and what folding touches."""

from types import SimpleNamespace

import pytest
import torch

from quept.config import Granularity, Smoothing
from quept.layers.linear import weight_of
from quept.models import Features, Values, architecture_of
from quept.numerics import affine
from quept.transforms import fit

BITS = (2, 3, 4)
GRANULARITY = Granularity(group_size=16)
SETTINGS = Smoothing(bits=BITS, grid=10)


def uneven(channels, seed=0, tokens=96):
    """Activations of which every eighth channel is 64 times as large as the others."""
    sample = torch.randn(tokens, channels, generator=torch.Generator().manual_seed(seed))
    sample[:, ::8] *= 64
    return sample


def fitted(model, inputs, settings=SETTINGS, bits=BITS):
    architecture = architecture_of(model.config.model_type)
    block = architecture.block_list(model)[0]
    return block, fit(block, architecture, model.config, inputs, settings, GRANULARITY, bits)


def inputs_of(model, make=uneven):
    """Made-up input rows of every site's consumers."""
    architecture = architecture_of(model.config.model_type)
    block = architecture.block_list(model)[0]
    firsts = [site.consumers[0] for site in architecture.sites_for(model.config)]
    return {path: make(weight_of(block.get_submodule(path)).shape[1]) for path in firsts}


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


def objective(sample, weights, scale):
    """The search's own measure: the consumers' output error at each bit-width, as a share of that without smoothing."""

    def error(scale, bits):
        total = 0.0
        for weight in weights:
            grouped = affine.split_groups(weight * scale, GRANULARITY.inputs_per_scale(bits, weight.shape[1]))
            rounded = affine.fake_quantize(grouped, affine.grid(grouped, bits))
            rounded = affine.join_groups(rounded, weight.shape[1]) / scale
            total += float((sample @ (rounded - weight).T).square().mean())
        return total

    return sum(error(scale, bits) / error(torch.ones_like(scale), bits) for bits in BITS)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("even", [True, False])
def test_never_worse_than_no_smoothing(model, seed, even):
    def make(channels):
        return (
            torch.randn(96, channels, generator=torch.Generator().manual_seed(seed)) if even else uneven(channels, seed)
        )

    inputs = inputs_of(model, make)
    block, scales = fitted(model, inputs)
    for path, sample in inputs.items():
        consumers = [other for other in scales.columns if scales.columns[other] is scales.columns[path]]
        weights = [block.get_submodule(other).weight for other in consumers]
        assert objective(sample, weights, scales.columns[path]) <= len(BITS) * (1 + 1e-4)


def test_large_channels_get_large_scales(model):
    path = "self_attn.q_proj"
    inputs = inputs_of(model)
    block, scales = fitted(model, inputs)
    scale = scales.columns[path]
    large = torch.zeros(len(scale), dtype=torch.bool)
    large[::8] = True
    assert scale[large].min() > 1 > scale[~large].max()
    weights = [block.get_submodule(f"self_attn.{name}_proj").weight for name in "qkv"]
    with torch.no_grad():
        assert objective(inputs[path], weights, scale) < 0.9 * len(BITS)


def test_scales_are_powers_of_two(model):
    _, scales = fitted(model, inputs_of(model))
    for scale in (*scales.columns.values(), *scales.rows.values()):
        assert scale.log2().equal(scale.log2().round())
        assert (scale > 0).all()


def test_heads_that_share_a_value_share_its_scale(model):
    """Four heads of eight channels read two key-value heads: head 0 and 1 the first, head 2 and 3 the second."""
    _, scales = fitted(model, inputs_of(model))
    by_head = scales.columns["self_attn.o_proj"].view(4, 8)
    assert by_head[0].equal(by_head[1])
    assert by_head[2].equal(by_head[3])
    assert len(by_head.unique()) > 1
    assert scales.rows["self_attn.v_proj"].equal(torch.cat([by_head[0], by_head[2]]))


@pytest.mark.parametrize(("family", "untouched"), [("phi3", range(48)), ("gpt2", range(64))])
def test_queries_and_keys_of_a_fused_projection_stay(tiny_model, family, untouched):
    model = tiny_model(family)
    architecture = architecture_of(family)
    fused = architecture.linears[0]
    _, scales = fitted(model, inputs_of(model))
    rows = scales.rows[fused]
    assert (rows[list(untouched)] == 1).all()
    assert len(rows.unique()) > 1


def test_the_gate_of_a_fused_projection_stays(tiny_model):
    model = tiny_model("phi3")
    _, scales = fitted(model, inputs_of(model))
    gate, up = scales.rows["mlp.gate_up_proj"].chunk(2)
    assert (gate == 1).all()
    assert up.equal(scales.columns["mlp.down_proj"])


def test_folding_touches_only_what_it_names(model):
    architecture = architecture_of("llama")
    block, scales = fitted(model, inputs_of(model))
    before = {name: value.clone() for name, value in block.state_dict().items()}
    scales.fold(block, architecture)
    after = block.state_dict()
    named = {f"{path}.weight" for path in (*scales.columns, *scales.rows)}
    assert {name for name, value in after.items() if not value.equal(before[name])} == named
    o_proj = "self_attn.o_proj.weight"
    assert after[o_proj].equal(before[o_proj] * scales.columns["self_attn.o_proj"])


def test_norms_with_an_offset_only_grow(tiny_model):
    """Beside an offset, a weight that shrinks towards -1 would lose its digits in bfloat16."""
    _, scales = fitted(tiny_model("gemma2"), inputs_of(tiny_model("gemma2")))
    for path in ("input_layernorm", "pre_feedforward_layernorm"):
        assert scales.rows[path].max() == 1
        assert scales.rows[path].min() < 1


def test_a_silent_channel_is_harmless(model):
    def make(channels):
        sample = uneven(channels)
        sample[:, 3] = 0
        return sample

    _, scales = fitted(model, inputs_of(model, make))
    assert all(bool(torch.isfinite(scale).all()) for scale in scales.columns.values())


def test_other_bit_widths_than_the_recipes_are_searched_at_the_lowest(model):
    inputs = inputs_of(model)
    _, at_eight = fitted(model, inputs, bits=(8,))
    _, asked = fitted(model, inputs, settings=SETTINGS.updated(bits=(8,)), bits=(8,))
    for path, scale in at_eight.columns.items():
        assert scale.equal(asked.columns[path])


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (Values(), [0, 1, 0, 1, 2, 3, 2, 3]),
        (Values(packed="blocks"), [12, 13, 12, 13, 14, 15, 14, 15]),
        (Features(), [0, 1, 2, 3, 4, 5, 6, 7]),
        (Features(lambda config: config.intermediate_size), [20, 21, 22, 23, 24, 25, 26, 27]),
    ],
    ids=["values", "values in blocks", "features", "features at an offset"],
)
def test_producer_rows(channels, expected):
    """Four heads of two channels on two key-value heads."""
    config = SimpleNamespace()
    config.num_attention_heads, config.num_key_value_heads, config.intermediate_size = 4, 2, 20
    assert channels.rows(config, 8).tolist() == expected


def test_producer_rows_of_heads_packed_one_by_one():
    config = SimpleNamespace()
    config.num_attention_heads = 2
    assert Values(packed="heads").rows(config, 4).tolist() == [4, 5, 10, 11]
