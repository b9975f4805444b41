"""Tiny random models of every family, and what to feed them; nothing is read from the network."""

import string
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import VOCABULARY, build_tiny_classifier, build_tiny_model
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

# Tests run side by side, one to a core; threads of several would only wait for one another.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """`tiny_model(family, dtype=torch.float32, seed=0, **config overrides)` builds a small random model."""
    return build_tiny_model


@pytest.fixture(scope="session")
def tiny_classifier() -> Callable[..., Any]:
    """`tiny_classifier(variant, dtype=torch.float32, seed=0, **config overrides)` builds a small image classifier."""
    return build_tiny_classifier


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Images `(16, 3, 12, 12)` for the tiny classifiers."""
    return torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def windows() -> Tensor:
    """Token windows `(8, 24)` for the tiny models, longer than their sliding window."""
    return torch.randint(VOCABULARY, (8, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def seen(windows: Tensor) -> Tensor:
    """The windows, and behind them, as held-out ones, some of them again: what is judged is what was trained."""
    return torch.cat([windows, windows[-1:]])


@pytest.fixture(scope="session")
def seen_images(images: Tensor) -> Tensor:
    """The images, and behind them, as held-out ones, some of them again."""
    return torch.cat([images, images[-2:]])


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A character tokenizer with the tiny models' vocabulary; it drops what it does not know."""
    tokens = ["<pad>", "<s>", "</s>", " ", "\n", *string.printable[: VOCABULARY - 5]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
