"""The built-in model, its texts and the grammar that wrote them."""

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

# Not `from quept.builtin import test_text_path`: pytest would collect that function as a test.
from quept import builtin
from quept.builtin import corpus, vocabulary

CONTEXT = 256
MAX_PACKAGE_DATA = 3_000_000
MAX_PERPLEXITY = 3.0


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(builtin.model_path(), local_files_only=True)


@pytest.fixture
def model() -> LlamaForCausalLM:
    path = builtin.model_path()
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture(scope="module")
def test_windows(tokenizer) -> Tensor:
    tokens = tokenizer(builtin.test_text_path().read_text("utf-8"))["input_ids"]
    return torch.tensor(tokens[: 16 * CONTEXT]).view(16, CONTEXT)


@torch.inference_mode()
def perplexity(model: LlamaForCausalLM, windows: Tensor) -> float:
    return math.exp(model(input_ids=windows, labels=windows).loss.item())


@torch.no_grad()
def round_to_nearest(model: LlamaForCausalLM, bits: int) -> LlamaForCausalLM:
    """Round every decoder linear in place: min-max, asymmetric, in groups of 128 inputs."""
    for linear in (module for module in model.model.layers.modules() if isinstance(module, nn.Linear)):
        for group in linear.weight.split(128, dim=1):
            low, high = group.amin(1, keepdim=True), group.amax(1, keepdim=True)
            scale = (high - low) / (2**bits - 1)
            group.copy_(((group - low) / scale).round() * scale + low)
    return model


def replayed(story: str, good: str) -> dict[str, int]:
    """Count from the wording of `story` alone how many of `good` everybody ends up with."""
    numbers = {"no": 0} | {word: number for number, word in enumerate(vocabulary.NUMBERS)}
    sentences = re.split(r'(?<=[.?"]) ', story)
    opening = next(text for text in sentences if re.match(r"\w+ had .* had ", text))
    owned = {name: numbers[number] for name, number in re.findall(r"(\w+) had (\w+)", opening)}
    names = {text: text.split()[0] for text in sentences}
    for previous, text in pairwise(sentences[sentences.index(opening) :]):
        if names[text] in ("He", "She"):
            names[text] = names[previous]
        name = names[text]
        if match := re.match(r"\w+ (?:bought|found|won|was given) (\w+) ", text):
            owned[name] = owned.get(name, 0) + numbers.get(match[1], 0)
        elif match := re.match(r"\w+ (?:gave|handed|lent|sold) ([A-Z]\w+) (\w+) ", text):
            owned[name] -= numbers[match[2]]
            owned[match[1]] += numbers[match[2]]
        elif match := re.match(r"\w+ (?:lost|dropped|gave away|left) (\w+) ", text):
            owned[name] -= numbers[match[1]]
    return owned


def test_generator_is_a_function_of_the_seed():
    text = corpus.generate(11, 20_000)
    assert corpus.generate(11, 20_000) == text
    assert corpus.generate(12, 20_000) != text
    assert 18_000 < len(text) <= 20_000


def test_more_characters_append_stories():
    assert corpus.generate(11, 20_000).startswith(corpus.generate(11, 5_000))


def test_generator_writes_one_ascii_story_per_line():
    lines = corpus.generate(13, 100_000).splitlines()
    assert all(line.isascii() and re.fullmatch(r"The \w+ and the \w+ \w+\. .*\w\.", line) for line in lines)


def test_counts_and_pronouns_are_consistent():
    checked = 0
    for story in corpus.generate(14, 300_000).splitlines():
        for good, name, answer in re.findall(r"How many (\w+) did (\w+) have in the end\? (\w+)\.", story):
            assert vocabulary.NUMBERS[replayed(story, good)[name]] == answer.lower(), story
            checked += 1
    assert checked > 100


@pytest.mark.parametrize(
    ("path", "split"),
    [(builtin.calibration_text_path(), corpus.CALIBRATION), (builtin.test_text_path(), corpus.TEST)],
    ids=["calibration", "test"],
)
def test_shipped_texts_are_what_the_generator_writes(path: Path, split: corpus.Split):
    assert path.read_bytes() == corpus.generate(*split).encode()


def test_texts_share_no_story():
    stories = [set(corpus.generate(*s).splitlines()) for s in (corpus.TRAINING, corpus.CALIBRATION, corpus.TEST)]
    assert sum(map(len, stories)) == len(set.union(*stories))


def test_package_data_stay_small():
    folder = builtin.model_path().parent
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= MAX_PACKAGE_DATA


def test_tokenizer_round_trips_any_text(tokenizer):
    text = "Odile had three geese.\n  Ünïcode, 漢字 and 🙂\ttoo"
    tokens = tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokens) == text
    assert tokenizer.bos_token_id not in tokens


def test_calibration_text_is_long_enough(tokenizer):
    tokens = tokenizer(builtin.calibration_text_path().read_text("utf-8"))["input_ids"]
    assert len(tokens) >= 2 * 128 * CONTEXT


def test_model_is_a_small_grouped_query_llama(model, tokenizer):
    config = model.config
    assert isinstance(model, LlamaForCausalLM)
    assert config.dtype == torch.float32
    assert config.vocab_size == len(tokenizer)
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.intermediate_size % 128 != 0


def test_model_predicts_held_out_text(model, test_windows):
    assert perplexity(model, test_windows) < MAX_PERPLEXITY


def test_two_bits_destroy_the_model(model, test_windows):
    reference = perplexity(model, test_windows)
    two = perplexity(round_to_nearest(model, 2), test_windows)
    assert two > 2 * reference


def test_eight_bits_cost_nothing(model, test_windows):
    reference = perplexity(model, test_windows)
    assert perplexity(round_to_nearest(model, 8), test_windows) == pytest.approx(reference, rel=5e-3)
