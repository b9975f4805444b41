"""Generation with the packed cache, against generation with plain ones under the simulation."""

import copy
import itertools

import pytest
import torch
from families import FAMILIES
from transformers import DynamicCache

from quept.attention import attach
from quept.errors import InvalidInput
from quept.generation import KeyValueCache, cache_arguments
from quept.models import architecture_of
from quept.numerics.keyvalues import fake_quantize

ATTENTION = {"gpt_neox": "attention", "gpt2": "attn"}


def with_key_values(model, bits, rotates_values=True):
    architecture = architecture_of(model.config.model_type)
    attention = ATTENTION.get(architecture.model_type, "self_attn")
    for index, block in enumerate(architecture.block_list(model)):
        attach(block, architecture.block_path(index), attention, rotates_values).bits = bits
    return model


def set_bits(model, bits):
    for module in attentions(model):
        module.key_values.bits = bits


def attentions(model):
    return [module for module in model.modules() if hasattr(module, "key_values")]


@pytest.fixture
def llama(tiny_model):
    return with_key_values(tiny_model("llama"), 3)


@pytest.fixture(scope="module")
def prompts(windows):
    """Three prompts, the second of them padded on the left."""
    tokens, mask = windows[:3, :14].clone(), torch.ones(3, 14, dtype=torch.int64)
    tokens[1, :5], mask[1, :5] = 0, 0
    return {"input_ids": tokens, "attention_mask": mask}


def generate(model, prompts, cache, new=12, **settings):
    settings = {"do_sample": False, "output_logits": True, "eos_token_id": None, **settings}
    generated = model.generate(
        **prompts,
        **cache_arguments(cache),
        max_new_tokens=new,
        pad_token_id=0,
        return_dict_in_generate=True,
        **settings,
    )
    return generated.sequences, torch.stack(generated.logits)


def same(actual, expected):
    assert actual[0].equal(expected[0])
    assert (actual[1] - expected[1]).abs().max() < 1e-5


@torch.no_grad()
def step(model, tokens, cache):
    return model(input_ids=tokens, **cache_arguments(cache), use_cache=True).logits[:, -1]


class Reference(DynamicCache):
    """All tokens in full precision, rotated; `quantized(layer, states)` says what is handed out of them."""

    def __init__(self, model, quantized):
        super().__init__()
        self.key_values = [module.key_values for module in attentions(model)]
        self.quantized = quantized

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        key_values = self.key_values[layer_idx]
        states = super().update(*key_values.rotate(key_states, value_states), layer_idx)
        keys, values = (self.quantized(key_values, state) for state in states)
        key_values.hand_out(keys)
        return keys, values


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_is_the_simulation_token_for_token(family, tiny_model, prompts):
    model = with_key_values(tiny_model(family), 3)
    simulated = generate(model, prompts, DynamicCache(config=model.config))
    same(generate(model, prompts, KeyValueCache(model)), simulated)
    set_bits(model, None)
    assert not generate(model, prompts, DynamicCache(config=model.config))[1].equal(simulated[1])


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_attention_sees_the_same_bits(family, dtype, tiny_model, windows, monkeypatch):
    """Also where weights hold the rotation of values."""
    model, seen = with_key_values(tiny_model(family, dtype=dtype), 4, rotates_values=False), []
    attend = torch.nn.functional.scaled_dot_product_attention

    def record(query, key, value, *args, **kwargs):
        seen.append((key.clone(), value.clone()))
        return attend(query, key, value, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    for cache in (DynamicCache(config=model.config), KeyValueCache(model)):
        for tokens in (windows[:2, :11], *windows[:2, 11:16].split(1, dim=1)):
            step(model, tokens, cache)
    simulated, packed = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    for (key, value), (packed_key, packed_value) in zip(simulated, packed, strict=True):
        assert packed_key.dtype == dtype
        assert packed_key.equal(key)
        assert packed_value.equal(value)


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=str)
def test_beam_search_is_the_simulation(settings, llama, prompts):
    simulated = generate(llama, prompts, DynamicCache(config=llama.config), **settings)
    same(generate(llama, prompts, KeyValueCache(llama), **settings), simulated)


def test_sampling_is_the_simulation(llama, prompts):
    tokens = []
    for cache in (DynamicCache(config=llama.config), KeyValueCache(llama)):
        torch.manual_seed(0)
        tokens.append(generate(llama, prompts, cache, do_sample=True)[0])
    assert tokens[1].equal(tokens[0])


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_speculation_is_greedy_generation(family, tiny_model, prompts):
    model = with_key_values(tiny_model(family), 3)
    if family == "mistral" and not hasattr(DynamicCache, "activate_past_recording"):
        pytest.skip("this transformers cannot take tokens back from a sliding window")
    # A repetitive prompt, from which candidates are taken and often rejected.
    prompt = {"input_ids": prompts["input_ids"][:1].repeat(1, 2)}
    greedy = generate(model, prompt, KeyValueCache(model), eos_token_id=2)
    guessed = generate(model, prompt, KeyValueCache(model), eos_token_id=2, prompt_lookup_num_tokens=3)
    assert guessed[0].shape[1] > 30
    assert guessed[0].equal(greedy[0])


@pytest.mark.parametrize("recent", [1, 5, 100])
def test_recent_tokens_are_not_quantized(recent, llama, windows):
    def all_but_recent(key_values, states):
        settled = max(states.shape[-2] - recent, 0)
        return torch.cat((fake_quantize(states[..., :settled, :], 2), states[..., settled:, :]), dim=-2)

    set_bits(llama, 2)
    caches = KeyValueCache(llama, recent=recent), Reference(llama, all_but_recent)
    plain, steps = DynamicCache(config=llama.config), []
    for tokens in (windows[:2, :9], *windows[:2, 9:20].split(1, dim=1)):
        steps.append([step(llama, tokens, cache) for cache in caches])
        set_bits(llama, None)
        steps[-1].append(step(llama, tokens, plain))
        set_bits(llama, 2)
    for actual, expected, exact in steps:
        assert torch.allclose(actual, expected, atol=1e-5)
        assert torch.allclose(actual, exact, atol=1e-4) == (recent == 100)


@pytest.mark.parametrize("widths", [(4, 2, 8, 2), (None, 3, None, 5), (2, None, 2, None)], ids=str)
def test_a_token_keeps_the_bit_width_at_which_it_was_stored(widths, llama, windows):
    stored = [width for width in widths for _ in range(3)]

    def as_stored(key_values, states):
        pieces = zip(states.split(1, dim=-2), stored, strict=False)
        return torch.cat([piece if width is None else fake_quantize(piece, width) for piece, width in pieces], dim=-2)

    caches = KeyValueCache(llama), Reference(llama, as_stored)
    for width, tokens in zip(widths, windows[:2, :12].split(3, dim=1), strict=True):
        set_bits(llama, width)
        # Two at once and one alone: a segment begins, and goes on.
        for some in (tokens[:, :2], tokens[:, 2:]):
            actual, expected = (step(llama, some, cache) for cache in caches)
            assert torch.allclose(actual, expected, atol=1e-5)


def test_recent_tokens_stay_exact_when_a_layer_gets_its_first_bit_width(llama, windows):
    caches = DynamicCache(config=llama.config), KeyValueCache(llama, recent=20)
    for bits, tokens in ((None, windows[:2, :9]), (2, windows[:2, 9:12]), (None, windows[:2, 12:15])):
        set_bits(llama, None)
        expected = step(llama, tokens, caches[0])
        set_bits(llama, bits)
        assert torch.allclose(step(llama, tokens, caches[1]), expected, atol=1e-4)


def test_layers_have_bit_widths_of_their_own(llama, windows):
    first, second = (module.key_values for module in attentions(llama))
    first.bits, second.bits = None, 2
    caches = DynamicCache(config=llama.config), KeyValueCache(llama)
    for tokens in (windows[:1, :9], windows[:1, 9:10]):
        expected, actual = (step(llama, tokens, cache) for cache in caches)
        assert torch.allclose(actual, expected, atol=1e-5)


def test_without_a_bit_width_it_is_a_plain_cache(llama, prompts):
    set_bits(llama, None)
    same(generate(llama, prompts, KeyValueCache(llama)), generate(llama, prompts, DynamicCache(config=llama.config)))


def layers_held(cache):
    return [
        sum(tensor.untyped_storage().nbytes() for tensor in (layer._latest, *(s._buffer for s in layer._segments)))
        for layer in cache.layers
    ]


@pytest.mark.parametrize(("bits", "share"), [(2, 0.165), (3, 0.233), (4, 0.3), (8, 0.567)])
def test_memory_at_two_thousand_tokens(bits, share, tiny_model):
    model = with_key_values(tiny_model("llama", head_dim=64, num_key_value_heads=1), bits)
    cache = KeyValueCache(model)
    layer, generator = cache.layers[0], torch.Generator().manual_seed(0)
    for tokens in (1990, *[1] * 300):
        layer.update(*torch.randn(2, 2, 1, tokens, 64, generator=generator, dtype=torch.bfloat16).unbind(0))
        if layer.get_seq_length() >= 2000:
            assert cache.bytes() <= share * cache.bytes_at(torch.bfloat16)
    assert cache.bytes() == sum(layers_held(cache)) > 0
    # Two vectors of 64 numbers for each of two sequences, one key-value head: not one for each query head.
    assert cache.bytes_at(torch.bfloat16) == 2290 * 2 * 2 * 64 * 2
    assert cache.bytes_at(torch.float32) == 2 * cache.bytes_at(torch.bfloat16)


def test_buffers_are_not_copied_for_each_token(llama):
    layer, buffers = KeyValueCache(llama).layers[0], set()
    for tokens in (1000, *[1] * 100):
        layer.update(torch.ones(1, 2, tokens, 8), torch.ones(1, 2, tokens, 8))
        buffers.add(layer._segments[0]._buffer.data_ptr())
    assert len(buffers) <= 3


@pytest.mark.parametrize("recent", [0, 3, 20])
def test_tokens_outside_the_window_are_forgotten(recent, tiny_model, windows):
    model = with_key_values(tiny_model("mistral"), 4)
    cache = KeyValueCache(model, recent=recent)
    for tokens in (windows[:1], *windows[1:3].reshape(1, -1).split(1, dim=1)):
        step(model, tokens, cache)
    assert cache.get_seq_length() == 72
    assert cache.bytes_at(torch.float32) == 2 * 7 * 2 * 2 * 8 * 4  # layers, tokens, keys and values, heads, size
    assert cache.get_mask_sizes(1, 0) == (8, 65)
    assert all(len(layer._segments) <= 1 for layer in cache.layers)
    assert cache.bytes() == sum(layers_held(cache))
    assert cache.bytes() < 64 * 2 * 2 * 2 * 8 * 4


def test_a_long_prompt_s_memory_is_given_back_at_once(tiny_model):
    model = with_key_values(tiny_model("mistral"), 8)
    cache = KeyValueCache(model)
    cache.layers[0].update(torch.ones(1, 2, 500, 8), torch.ones(1, 2, 500, 8))
    # A row of eight codes, scale and zero, twice for each head: seven tokens, and room for 16.
    assert cache.bytes() == sum(layers_held(cache)) == 4 * (8 + 3) * (7 + 16)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_what_was_cropped_leaves_no_trace(family, tiny_model, windows):
    model = with_key_values(tiny_model(family), 3)
    caches = KeyValueCache(model), KeyValueCache(model)
    for layer in caches[0].layers:
        layer.activate_past_recording()
    step(model, windows[:1, :13], caches[0])
    step(model, windows[:1, 13:17], caches[0])
    caches[0].crop(-6)
    step(model, windows[:1, :11], caches[1])
    assert [cache.get_seq_length() for cache in caches] == [11, 11]
    assert caches[0].bytes_at(torch.int8) == caches[1].bytes_at(torch.int8)
    caches[0].crop(0)
    for tokens in windows[1:2, :4].split(1, dim=1):
        results = [step(model, tokens, cache) for cache in caches]
        assert torch.allclose(*results, atol=1e-5)


def test_crop_takes_recent_tokens_first_and_may_take_all(llama, windows):
    cache = KeyValueCache(llama, recent=4)
    step(llama, windows[:1, :10], cache)
    for remove, left in ((-3, 7), (8, 7), (5, 5), (-9, 0)):
        cache.crop(remove)
        assert cache.get_seq_length() == left
        assert cache.bytes_at(torch.int8) == left * 2 * 2 * 2 * 8
    assert step(llama, windows[:1, :6], cache).equal(step(llama, windows[:1, :6], KeyValueCache(llama, recent=4)))


def test_a_window_does_not_move_back_over_what_was_forgotten(tiny_model, windows):
    model = with_key_values(tiny_model("mistral"), 4)
    cache = KeyValueCache(model)
    step(model, windows[:1, :12], cache)
    with pytest.raises(InvalidInput, match="window of 8 tokens"):
        cache.crop(-1)


@pytest.mark.parametrize("recent", [0, 3])
def test_sequences_are_repeated_reordered_and_selected(recent, llama, windows):
    cache = KeyValueCache(llama, recent=recent)
    cache.batch_repeat_interleave(2)  # of nothing
    step(llama, windows[:2, :9], cache)
    cache.batch_repeat_interleave(2)  # 0 0 1 1
    cache.reorder_cache(torch.tensor([3, 0, 1, 2]))  # 1 0 0 1
    cache.batch_select_indices(torch.tensor([0, 2]))  # 1 0
    swapped = KeyValueCache(llama, recent=recent)
    step(llama, windows[[1, 0], :9], swapped)
    for tokens in windows[2:4, :3].split(1, dim=1):
        assert torch.allclose(step(llama, tokens, cache), step(llama, tokens, swapped), atol=1e-5)


def test_a_reset_cache_is_a_new_one(llama, windows):
    cache = KeyValueCache(llama, recent=2)
    step(llama, windows[:2, :9], cache)
    cache.reset()
    assert cache.get_seq_length() == cache.bytes() == cache.bytes_at(torch.float32) == 0
    set_bits(llama, None)
    assert step(llama, windows[:3, :5], cache).equal(step(llama, windows[:3, :5], KeyValueCache(llama)))


def test_a_prompt_s_cache_can_be_copied_and_used_again(llama, windows):
    prompt = KeyValueCache(llama)
    with torch.inference_mode():
        llama(input_ids=windows[:1, :10], **cache_arguments(prompt))
    expected = []
    for row, repeated in itertools.product((1, 2), range(2)):
        cache = copy.deepcopy(prompt)
        for tokens in windows[row : row + 1, :3].split(1, dim=1):
            result = step(llama, tokens, cache)
        if repeated:
            assert result.equal(expected[-1])
        expected.append(result)
    assert not expected[0].equal(expected[2])
    assert prompt.get_seq_length() == 10


@pytest.mark.parametrize("recent", [0, 2])
def test_a_cache_filled_in_inference_mode_goes_on_outside_of_it(recent, llama, windows):
    caches = KeyValueCache(llama, recent=recent), KeyValueCache(llama, recent=recent)
    with torch.inference_mode():
        llama(input_ids=windows[:2, :10], **cache_arguments(caches[0]))
    step(llama, windows[:2, :10], caches[1])
    for tokens in windows[:2, 10:13].split(1, dim=1):
        results = [step(llama, tokens, cache) for cache in caches]
        assert results[0].equal(results[1])


@pytest.mark.parametrize("recent", [-1, 1.0, True, None])
def test_a_recent_that_is_no_number_of_tokens_is_refused(recent, llama):
    with pytest.raises(InvalidInput, match="recent"):
        KeyValueCache(llama, recent=recent)


def test_a_model_that_does_not_quantize_is_refused(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(InvalidInput, match="0 of 2"):
        KeyValueCache(model)
    attach(model.model.layers[0], "model.layers.0", "self_attn", True)
    with pytest.raises(InvalidInput, match="1 of 2"):
        KeyValueCache(model)
    with_key_values(model, 4)
    KeyValueCache(model)
    # Without the attention that knows what the cache hands out, its keys would be taken for unrotated ones.
    model.set_attn_implementation("sdpa")
    with pytest.raises(InvalidInput, match="'sdpa'"):
        KeyValueCache(model)
