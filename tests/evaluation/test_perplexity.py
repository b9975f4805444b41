import math
import sys
from dataclasses import FrozenInstanceError

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from quept.errors import InvalidInput
from quept.evaluation import perplexity

VOCABULARY = 128


def tiny_llama():
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,  # far from uniform, so that every prediction's loss is its own
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def stream(length):
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(length))


def brute_force(model, tokens, sequence_length, stride):
    """One prediction at a time: the first window that holds a token and a token before it scores it."""
    losses = []
    starts = range(0, len(tokens), stride)
    for position in range(1, len(tokens)):
        start = next((s for s in starts if s < position < s + sequence_length), None)
        if start is None:
            continue
        with torch.no_grad():
            logits = model(tokens[None, start:position]).logits[0, -1].double()
        losses.append(-logits.log_softmax(-1)[tokens[position]].item())
    return len(losses), sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("length", "sequence_length", "stride"),
    [
        (32, 16, 16),  # whole windows
        (41, 16, 16),  # a shorter last window
        (34, 16, 16),  # a last window of 2 tokens
        (33, 16, 16),  # a last token on its own: not scored
        (48, 16, 4),
        (45, 16, 7),
        (33, 16, 1),
        (40, 16, 15),
        (9, 16, 16),  # shorter than a window
        (9, 16, 3),
        (2, 2, 1),
        (11, 2, 2),
    ],
)
def test_equals_a_brute_force_reference(model, length, sequence_length, stride):
    tokens = stream(length)
    count, mean = brute_force(model, tokens, sequence_length, stride)
    result = perplexity(model, tokens, sequence_length=sequence_length, stride=stride)
    assert result.tokens == count
    assert result.negative_log_likelihood == pytest.approx(mean, rel=1e-5)
    assert result.value == pytest.approx(math.exp(mean), rel=1e-4)


def test_counts_of_scored_predictions(model):
    def count(length, **arguments):
        return perplexity(model, stream(length), sequence_length=16, **arguments).tokens

    assert count(64) == 4 * 15
    assert count(65) == 4 * 15
    assert count(66) == 4 * 15 + 1
    assert count(65, stride=8) == 64
    assert count(65, stride=15) == 64


@pytest.mark.parametrize("stride", [16, 5])
def test_neither_batch_size_nor_chunks_change_it(model, stride, monkeypatch):
    def measure(batch_size):
        result = perplexity(model, stream(90), sequence_length=16, stride=stride, batch_size=batch_size)
        return result.value, result.tokens

    expected = measure(None)
    for batch_size in (1, 3, 1000):
        assert measure(batch_size) == pytest.approx(expected, rel=1e-6)
    for logits in (1, 4 * VOCABULARY):
        # The package's name for the function hides the module's.
        monkeypatch.setattr(sys.modules["quept.evaluation.perplexity"], "_LOGITS_PER_CHUNK", logits)
        assert measure(None) == pytest.approx(expected, rel=1e-6)


def test_token_types_do_not_matter(model):
    tokens = stream(50)
    assert perplexity(model, tokens.int(), sequence_length=16) == perplexity(model, tokens, sequence_length=16)


def test_low_precision_logits_are_scored_in_float32():
    model = tiny_llama()
    expected = perplexity(model, stream(100), sequence_length=16)
    result = perplexity(model.to(torch.bfloat16), stream(100), sequence_length=16)
    assert result.value == pytest.approx(expected.value, rel=0.05)


def test_progress_counts_windows(model):
    calls = []
    perplexity(model, stream(70), sequence_length=16, batch_size=3, progress=lambda *call: calls.append(call))
    assert calls == [(3, 5), (4, 5), (5, 5)]


def test_default_batches_hold_about_2048_tokens(model):
    calls = []
    perplexity(model, stream(64 * 40), sequence_length=64, progress=lambda *call: calls.append(call))
    assert calls == [(32, 40), (40, 40)]


def test_modes_of_the_modules_are_restored():
    model = tiny_llama().train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    seen = []
    model.lm_head.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    perplexity(model, stream(40), sequence_length=16)
    assert seen
    assert not any(seen)
    assert [module.training for module in model.modules()] == before

    def fail(*_):
        raise RuntimeError("interrupted")

    model.lm_head.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="interrupted"):
        perplexity(model, stream(40), sequence_length=16)
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_predictions_that_are_not_finite_are_refused_with_the_layer(value):
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[3] = value
    with pytest.raises(InvalidInput, match="lm_head, whose weight holds NaN or infinite values, is the first"):
        perplexity(model, stream(40), sequence_length=16)


def test_an_overflow_in_float16_is_refused_with_the_layer_and_its_weight():
    model = tiny_llama().half()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[1, 2] = 60_000
        model.model.layers[0].mlp.up_proj.weight.mul_(100)
    message = r"in float16 are not finite; the output of model\.layers\.0\.mlp\.down_proj, .* 6e\+04 at \[1, 2\]"
    with pytest.raises(InvalidInput, match=message):
        perplexity(model, stream(40), sequence_length=16)
    assert perplexity(model.float(), stream(40), sequence_length=16).value < math.inf


def test_a_mean_too_large_for_the_exponential_gives_inf():
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    result = perplexity(model, stream(40), sequence_length=16)
    assert result.value == math.inf
    assert 710 < result.negative_log_likelihood < math.inf


def test_the_result_is_frozen(model):
    with pytest.raises(FrozenInstanceError):
        perplexity(model, stream(40), sequence_length=16).value = 1.0


@pytest.mark.parametrize(
    ("tokens", "arguments", "message"),
    [
        (stream(0), {}, "0 tokens, .*at least 2"),
        (stream(1), {}, "1 tokens, .*at least 2"),
        (stream(40).view(2, 20), {}, r"shape \(2, 20\)"),
        (stream(40).float(), {}, "torch.float32"),
        (stream(40), {"sequence_length": 1}, "sequence length is 1 "),
        (stream(40), {"sequence_length": 65}, "65 tokens, .*at most 64.*max_position_embeddings"),
        (stream(40), {"stride": 0}, "stride is 0 .*1 to the sequence length 16"),
        (stream(40), {"stride": 17}, "stride is 17 "),
        (stream(40), {"batch_size": 0}, "batch size is 0 "),
    ],
)
def test_bad_arguments(model, tokens, arguments, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        perplexity(model, tokens, **{"sequence_length": 16} | arguments)
    assert "\n" not in str(caught.value)


def test_a_config_without_a_limit_is_not_checked():
    model = tiny_llama()
    del model.config.max_position_embeddings
    assert perplexity(model, stream(80), sequence_length=80).tokens == 79
