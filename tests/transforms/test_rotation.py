"""Rotations: exact at full precision for every family and configuration, and worth having with outliers."""

import copy

import pytest
import torch
from comparison import relative_error
from families import FAMILIES

import quept
from quept.assembly import make_elastic
from quept.config import Rotation
from quept.layers.linear import weight_of
from quept.models import BlockContext, architecture_of
from quept.precision import set_precision
from quept.transforms import Rotate
from quept.transforms.rotation import StreamRotation

RECIPE = quept.load_recipe("weight-activation").updated(adapter={"kind": "none"})
# Whatever a configuration can change about what is rotated where: biases, norms, fused layers, sizes.
VARIANTS = {
    **{family: (family, {}) for family in FAMILIES},
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-no-groups": ("llama", {"num_key_value_heads": 4}),
    "llama-odd": ("llama", {"hidden_size": 24, "intermediate_size": 172}),
    "llama-untied": ("llama", {"tie_word_embeddings": False}),
    "llama-bf16": ("llama", {"dtype": torch.bfloat16}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "opt-norm-last": ("opt", {"do_layer_norm_before": False}),
    "opt-bare-norm": ("opt", {"layer_norm_elementwise_affine": False}),
    "opt-no-bias": ("opt", {"enable_bias": False}),
    "opt-neither": ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    "opt-projected": ("opt", {"word_embed_proj_dim": 16}),
    "neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "neox-no-bias": ("gpt_neox", {"attention_bias": False}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False}),
    "gpt2-odd": ("gpt2", {"n_embd": 44, "n_head": 4, "n_inner": 43}),
}
# The residual stream of these is read or written past the weights around it.
ONLINE = {"gemma2", "gemma3_text", "opt-norm-last", "opt-no-bias", "neox-no-bias"}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


@torch.no_grad()
def rotated(model, across_heads=False):
    """A rotated copy in float32, elastic, and its blocks with their places."""
    model = copy.deepcopy(model).float()
    settings = RECIPE.rotation.updated(across_heads=across_heads)
    make_elastic(model, RECIPE.updated(rotation=settings))
    architecture = architecture_of(model.config.model_type)
    blocks = architecture.block_list(model)
    placed = [(block, BlockContext.of(architecture, model, index)) for index, block in enumerate(blocks)]
    for block, context in placed:
        Rotate(settings).fold(block, context, {})
    return model, placed


@torch.no_grad()
def logits(model, windows):
    return model(input_ids=windows, use_cache=False).logits


@torch.no_grad()
@pytest.mark.parametrize("across_heads", [False, True])
def test_the_function_stays_as_it_is_while_every_weight_changes(across_heads, variant, tiny_model, windows):
    family, settings = VARIANTS[variant]
    plain = tiny_model(family, **settings)
    model, placed = rotated(plain, across_heads)
    assert relative_error(logits(model, windows), logits(plain.float(), windows)) < 1e-5
    originals = architecture_of(plain.config.model_type).block_list(plain)
    for (block, context), original in zip(placed, originals, strict=True):
        for path in context.architecture.linears:
            before, after = weight_of(original.get_submodule(path)).float(), block.get_submodule(path).weight
            assert relative_error(after, before) > 0.5, path


def test_generation_with_a_cache_goes_on_as_before(tiny_model, windows):
    plain = tiny_model("llama")
    model, _ = rotated(plain)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(windows, **options), plain.generate(windows, **options))


def test_what_cannot_be_rotated_in_the_weights_is_rotated_online_and_said(variant, tiny_model):
    family, settings = VARIANTS[variant]
    _, placed = rotated(tiny_model(family, **settings))
    block, context = placed[0]
    notes = " ".join(Rotate().notes(block, context))
    online = Rotate().online(block, context)
    assert ("cannot be rotated in the weights" in notes) == (variant in ONLINE)
    linears = set(context.architecture.linears)
    behind_activations = {path for path in linears if path.endswith(("down_proj", "fc2", "4h_to_h", "mlp.c_proj"))}
    behind_attention = {path for path in linears if path.endswith(("o_proj", "out_proj", "dense", "attn.c_proj"))}
    assert set(online) == (linears - behind_attention if variant in ONLINE else behind_activations)


@torch.no_grad()
def test_a_head_that_stands_out_costs_less_when_heads_are_mixed(tiny_model, windows):
    plain = tiny_model("llama", hidden_size=64, num_key_value_heads=4)
    for block in plain.model.layers:
        block.self_attn.v_proj.weight[:2] *= 40
        block.self_attn.o_proj.weight[:, :2] /= 40
    exact, errors = logits(plain, windows), {}
    for across_heads in (False, True):
        model, placed = rotated(plain, across_heads)
        online = Rotate(Rotation(enabled=True, across_heads=across_heads)).online(*placed[0])
        assert ("self_attn.o_proj" in online) == across_heads
        quept.set_precision(model, "w16a8")
        errors[across_heads] = relative_error(logits(model, windows), exact)
    assert errors[True] < 0.8 * errors[False]


def test_rotations_in_parts_are_said(tiny_model):
    _, placed = rotated(tiny_model("llama", hidden_size=24, intermediate_size=172))
    notes = Rotate().notes(*placed[0])
    assert any("order 172" in note and "mlp.down_proj" in note and "88 + 84" in note for note in notes)
    assert any("order 6" in note and "values of each head" in note and "4 + 2" in note for note in notes)
    _, placed = rotated(tiny_model("llama", intermediate_size=64))
    assert Rotate().notes(*placed[0]) == []


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt", "gpt_neox"])
def test_outliers_cost_less(family, tiny_model, windows):
    """Rounding per token suffers from channels that are large everywhere, above all where weights are small there."""
    plain = tiny_model(family)
    architecture = architecture_of(plain.config.model_type)
    for block in architecture.block_list(plain):
        for site in architecture.sites:
            if not architecture.is_linear(site.producer):
                norm = block.get_submodule(site.producer)
                norm.weight.data[:2] = 40
    exact = logits(plain, windows)
    rounded = copy.deepcopy(plain)
    make_elastic(rounded, RECIPE.updated(rotation={"enabled": False}))
    model, _ = rotated(plain)
    errors = {}
    for bits in (6, 8):  # below, errors in the logits of models this small are about as large as they can be
        for name, each in (("plain", rounded), ("rotated", model)):
            set_precision(each, f"w16a{bits}")
            errors[name, bits] = relative_error(logits(each, windows), exact)
        assert errors["rotated", bits] < 0.95 * errors["plain", bits]


@pytest.mark.parametrize("size", [1, 2, 12, 36, 43, 64, 172])
@pytest.mark.parametrize("centered", [False, True])
def test_a_stream_rotation_is_one_and_keeps_the_mean_where_norms_subtract_it(size, centered):
    rotation = StreamRotation(size, centered)
    matrix = rotation(torch.eye(size, dtype=torch.float64))
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    vectors = torch.randn(5, size, dtype=torch.float64)
    assert torch.allclose(rotation.inverse(rotation(vectors)), vectors, atol=1e-12)
    if centered:
        ones = torch.ones(size, dtype=torch.float64)
        assert torch.allclose(rotation(ones), ones, atol=1e-12)


@pytest.mark.parametrize("centered", [False, True])
def test_a_stream_rotation_spreads_one_channel_over_all(centered):
    spread = StreamRotation(64, centered)(torch.eye(64, dtype=torch.float64))
    assert spread.abs().max() < 0.4
