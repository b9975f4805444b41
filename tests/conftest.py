"""Tiny random models of every family, and what to feed them; nothing is read from the network."""

import string
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

# Tests run side by side, one to a core; threads of several would only wait for one another.
torch.set_num_threads(1)

VOCABULARY = 96
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# An intermediate size that no usual group size divides; fewer key-value heads than heads where the family can.
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    **SPECIAL,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
# One block of each kind, and a window shorter than the sequences: masks differ from block to block.
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
# The heads are wider than hidden / heads, as in the real Gemmas and Qwen3.
WIDE_HEADS = {"head_dim": 12}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 8},
    "qwen2": {**GROUPED, **SLIDING, "use_sliding_window": True},
    "qwen3": {**GROUPED, **WIDE_HEADS},
    "gemma2": {**GROUPED, **SLIDING, **WIDE_HEADS},
    "gemma3_text": {**GROUPED, **SLIDING, **WIDE_HEADS},
    "phi3": {**GROUPED, "sliding_window": 8},
    "opt": {
        **{key: value for key, value in SIZES.items() if key != "intermediate_size"},
        "ffn_dim": 44,
        "word_embed_proj_dim": 32,
    },
    "gpt_neox": {**SIZES, "rotary_pct": 0.5},
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_inner": 44,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        **SPECIAL,
    },
}


def build_tiny_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> Any:
    """A small random causal language model of a family, in evaluation mode.

    Noise is added to every parameter, so that norms and biases are not the ones and zeros for which folding a scale
    in would go unnoticed, and so that weights are large enough for their rounding to matter. Buffers stay as they
    are: rotary frequencies are float32 in every checkpoint.
    """
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
                parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model.eval()


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """`tiny_model(family, dtype=torch.float32, seed=0, **config overrides)` builds a small random model."""
    return build_tiny_model


@pytest.fixture(scope="session")
def windows() -> Tensor:
    """Token windows `(8, 24)` for the tiny models, longer than their sliding window."""
    return torch.randint(VOCABULARY, (8, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A character tokenizer with the tiny models' vocabulary; it drops what it does not know."""
    tokens = ["<pad>", "<s>", "</s>", " ", "\n", *string.printable[: VOCABULARY - 5]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
