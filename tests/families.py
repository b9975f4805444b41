"""Tiny random models of every family; nothing is read from the network."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification

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

# Images of 3 x 12 x 12 in patches of 4 x 4; an MLP that no usual group size divides.
VISION_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 12,
    "patch_size": 4,
    "num_labels": 5,
}
VISION: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit", VISION_SIZES),
    "vit-no-bias": ("vit", {**VISION_SIZES, "qkv_bias": False}),
    "deit": ("deit", {**VISION_SIZES, "architectures": ["DeiTForImageClassification"]}),
    "deit-distilled": ("deit", {**VISION_SIZES, "architectures": ["DeiTForImageClassificationWithTeacher"]}),
    # Windows of 2 x 2 patches in 6 x 6, shifted in every second block; then patches merge.
    "swin": (
        "swin",
        {
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 2,
            "image_size": 12,
            "patch_size": 2,
            "mlp_ratio": 1.5,
            "num_labels": 5,
        },
    ),
    "dinov2": ("dinov2", {**VISION_SIZES, "mlp_ratio": 2}),
    "dinov2-swiglu": ("dinov2", {**VISION_SIZES, "mlp_ratio": 2, "use_swiglu_ffn": True}),
    "beit": ("beit", {**VISION_SIZES, "use_relative_position_bias": True}),
}


def build_tiny_classifier(variant: str, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> Any:
    """A small random image classifier, as `build_tiny_model` makes models of language."""
    family, settings = VISION[variant]
    return _randomized(AutoModelForImageClassification, family, {**settings, **overrides}, dtype, seed)


def build_tiny_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> Any:
    """A small random causal language model of a family, in evaluation mode.

    Noise is added to every parameter, so that norms and biases are not the ones and zeros for which folding a scale
    in would go unnoticed, and so that weights are large enough for their rounding to matter. Buffers stay as they
    are: rotary frequencies are float32 in every checkpoint.
    """
    return _randomized(AutoModelForCausalLM, family, {**FAMILIES[family], **overrides}, dtype, seed)


def _randomized(kind: Any, family: str, settings: dict[str, Any], dtype: torch.dtype, seed: int) -> Any:
    config = AutoConfig.for_model(family, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
                parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model.eval()
