"""The architectures of causal language models in transformers 5."""

from dataclasses import replace
from typing import Any

from quept.models.architecture import Architecture
from quept.models.sites import Features, Residual, Site, Values


def _piecewise_linear(config: Any) -> bool:
    """Return whether the activation commutes with positive scales, so that one can pass through it."""
    return bool(config.activation_function == "relu")


def _norm_first(config: Any) -> bool:
    """Return whether norms precede attention and MLP; a norm on the residual stream has consumers out of reach."""
    return bool(config.do_layer_norm_before)


def _opt_rotates(config: Any) -> bool:
    """Return whether norms come first, and whether there is a bias for the norms' own to move into."""
    return _norm_first(config) and bool(config.enable_bias or not config.layer_norm_elementwise_affine)


_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = ("mlp.gate_proj", "mlp.up_proj")

LLAMA = Architecture(
    model_type="llama",
    blocks="model.layers",
    outer=("lm_head",),
    linears=(*_ATTENTION, "self_attn.o_proj", *_GATED, "mlp.down_proj"),
    shared_inputs=(_ATTENTION, _GATED),
    sites=(
        Site("input_layernorm", _ATTENTION),
        Site("self_attn.v_proj", ("self_attn.o_proj",), Values()),
        Site("post_attention_layernorm", _GATED),
        Site("mlp.up_proj", ("mlp.down_proj",)),
    ),
    residual=Residual(("self_attn.o_proj", "mlp.down_proj")),
)
MISTRAL = replace(LLAMA, model_type="mistral")
QWEN2 = replace(LLAMA, model_type="qwen2")
QWEN3 = replace(LLAMA, model_type="qwen3")

GEMMA2 = replace(
    LLAMA,
    model_type="gemma2",
    norm_offset=1.0,
    residual=None,
    sites=(
        *(site for site in LLAMA.sites if site.producer != "post_attention_layernorm"),
        Site("pre_feedforward_layernorm", _GATED),
    ),
)
GEMMA3 = replace(GEMMA2, model_type="gemma3_text")

PHI3 = Architecture(
    model_type="phi3",
    blocks="model.layers",
    outer=("lm_head",),
    linears=("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    sites=(
        Site("input_layernorm", ("self_attn.qkv_proj",)),
        Site("self_attn.qkv_proj", ("self_attn.o_proj",), Values(packed="blocks")),
        Site("post_attention_layernorm", ("mlp.gate_up_proj",)),
        Site("mlp.gate_up_proj", ("mlp.down_proj",), Features(lambda config: config.intermediate_size)),
    ),
    residual=Residual(("self_attn.o_proj", "mlp.down_proj")),
)

OPT = Architecture(
    model_type="opt",
    blocks="model.decoder.layers",
    outer=("lm_head",),
    linears=(*_ATTENTION, "self_attn.out_proj", "fc1", "fc2"),
    shared_inputs=(_ATTENTION,),
    sites=(
        Site(
            "self_attn_layer_norm",
            _ATTENTION,
            when=lambda config: _norm_first(config) and config.layer_norm_elementwise_affine,
        ),
        Site("self_attn.v_proj", ("self_attn.out_proj",), Values()),
        Site(
            "final_layer_norm",
            ("fc1",),
            when=lambda config: _norm_first(config) and config.layer_norm_elementwise_affine,
        ),
        Site("fc1", ("fc2",), when=_piecewise_linear),
    ),
    residual=Residual(("self_attn.out_proj", "fc2"), centered=True, when=_opt_rotates),
)

GPT_NEOX = Architecture(
    model_type="gpt_neox",
    blocks="gpt_neox.layers",
    outer=("lm_head",),
    linears=("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    sites=(
        Site("input_layernorm", ("attention.query_key_value",)),
        Site("attention.query_key_value", ("attention.dense",), Values(packed="heads")),
        Site("post_attention_layernorm", ("mlp.dense_h_to_4h",)),
    ),
    attention="attention",
    residual=Residual(
        ("attention.dense", "mlp.dense_4h_to_h"), centered=True, when=lambda config: bool(config.attention_bias)
    ),
)

GPT2 = Architecture(
    model_type="gpt2",
    blocks="transformer.h",
    outer=("lm_head",),
    linears=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    sites=(
        Site("ln_1", ("attn.c_attn",)),
        Site("attn.c_attn", ("attn.c_proj",), Values(packed="blocks")),
        Site("ln_2", ("mlp.c_fc",)),
    ),
    attention="attn",
    residual=Residual(("attn.c_proj", "mlp.c_proj"), centered=True),
)
