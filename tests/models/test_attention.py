"""Quantized keys and values in the attention of every family."""

import pytest
import torch
from comparison import relative_error
from families import FAMILIES
from transformers import AttentionInterface

from quept.attention import attach, install, is_installed
from quept.errors import InvalidInput
from quept.models import architecture_of
from quept.numerics.hadamard import Rotation

ATTENTION = {"gpt_neox": "attention", "gpt2": "attn"}
BOTH = pytest.mark.parametrize("implementation", ["sdpa", "eager"])


def attach_all(model, rotates_values=True, bits=None):
    architecture = architecture_of(model.config.model_type)
    attention = ATTENTION.get(architecture.model_type, "self_attn")
    attached = [
        attach(block, architecture.block_path(index), attention, rotates_values)
        for index, block in enumerate(architecture.block_list(model))
    ]
    set_bits(attached, bits)
    return attached


def set_bits(attached, bits):
    for key_values in attached:
        key_values.bits = bits


@torch.no_grad()
def logits(model, windows):
    # The first row is padded on the left.
    mask = torch.ones_like(windows)
    mask[0, :5] = 0
    return model(input_ids=windows, attention_mask=mask).logits[:, 5:]


@pytest.fixture(params=FAMILIES)
def model(request, tiny_model):
    return tiny_model(request.param)


def test_without_a_bit_width_nothing_changes_bit_for_bit(model, windows):
    before, chosen = logits(model, windows), model.config._attn_implementation
    attached = attach_all(model)
    assert model.config._attn_implementation == f"quept_{chosen}"
    assert logits(model, windows).equal(before)
    assert {key_values.path for key_values in attached} <= {name for name, _ in model.named_modules()} | {
        key_values.path for key_values in attached
    }
    assert all(model.get_submodule(f"{key_values.path}.key_values") is key_values for key_values in attached)
    set_bits(attached, 4)
    assert not logits(model, windows).equal(before)
    set_bits(attached, None)
    assert logits(model, windows).equal(before)


@BOTH
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_both_implementations_are_wrapped(family, implementation, tiny_model, windows):
    model = tiny_model(family, attn_implementation=implementation)
    before = logits(model, windows)
    attached = attach_all(model)
    assert model.config._attn_implementation == f"quept_{implementation}"
    assert logits(model, windows).equal(before)
    set_bits(attached, 3)
    other = tiny_model(family, attn_implementation="eager" if implementation == "sdpa" else "sdpa")
    attach_all(other, bits=3)
    assert torch.allclose(logits(model, windows), logits(other, windows), atol=1e-2)


def test_gpt2_keeps_its_upcast_attention(tiny_model, windows):
    settings = {"attn_implementation": "eager", "reorder_and_upcast_attn": True}
    model = tiny_model("gpt2", dtype=torch.bfloat16, **settings)
    before = logits(model, windows)
    attach_all(model)
    assert logits(model, windows).equal(before)


def test_the_rotation_alone_changes_nothing(model, windows, monkeypatch):
    before = logits(model, windows)
    attach_all(model, bits=4)
    monkeypatch.setattr("quept.layers.keyvalues.fake_quantize", lambda values, bits: values)
    after = logits(model, windows)
    assert not after.equal(before)
    assert relative_error(after, before) < 1e-5


def test_more_bits_are_closer(model, windows):
    before = logits(model, windows)
    attached = attach_all(model)
    errors = []
    for bits in (2, 4, 8):
        set_bits(attached, bits)
        errors.append(relative_error(logits(model, windows), before))
    assert errors[0] > errors[1] > errors[2]
    # The cut ends of the range alone cost some per cent in heads of eight channels.
    assert errors[2] < 0.1


@torch.no_grad()
def test_weights_that_hold_the_values_rotation_give_the_same(tiny_model, windows):
    rotating, holding = tiny_model("llama", head_dim=12), tiny_model("llama", head_dim=12)
    rotation = Rotation.of(12)
    for layer in holding.model.layers:
        values, output = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
        values.copy_(rotation(values.T.unflatten(1, (-1, 12))).flatten(1).T)
        output.copy_(rotation(output.unflatten(1, (-1, 12))).flatten(1))
    exact = logits(rotating, windows)
    assert relative_error(logits(holding, windows), exact) < 1e-5
    attach_all(rotating, rotates_values=True, bits=4)
    attached = attach_all(holding, rotates_values=False, bits=4)
    expected = logits(rotating, windows)
    assert relative_error(logits(holding, windows), expected) < 1e-3
    # Rotated once more, values have other codes.
    for key_values in attached:
        key_values.rotates_values = True
    assert relative_error(logits(holding, windows), expected) > 1e-2


def test_gradients_reach_every_weight_of_the_attention(model, windows):
    attach_all(model, bits=4)
    model(input_ids=windows[:1], labels=windows[:1]).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
        if parameter.dim() == 2 and any(part in name for part in ("q_proj", "k_proj", "v_proj", "qkv", "c_attn")):
            assert parameter.grad.abs().max() > 0, name


def test_installing_twice_is_installing_once(tiny_model, windows):
    model = tiny_model("llama")
    before = logits(model, windows)
    attach_all(model, bits=2)
    attached = attach_all(model)
    install(model.config)
    assert model.config._attn_implementation == "quept_sdpa"
    assert is_installed(model.config)
    assert logits(model, windows).equal(before)
    assert sum(type(module).__name__ == "KeyValues" for module in model.modules()) == len(attached) == 2


def test_another_implementation_is_refused_with_what_to_choose(tiny_model):
    model = tiny_model("llama")
    AttentionInterface.register("another", lambda *args, **kwargs: None)
    model.config._attn_implementation = "another"
    with pytest.raises(InvalidInput, match=r"'another'.*attn_implementation=\"sdpa\".*\"eager\""):
        attach_all(model)
    assert not any(type(module).__name__ == "KeyValues" for module in model.modules())


def test_the_saved_configuration_does_not_name_it(tiny_model, tmp_path):
    model = tiny_model("llama")
    attach_all(model, bits=4)
    model.config.save_pretrained(tmp_path)
    assert "quept" not in (tmp_path / "config.json").read_text()
