"""Register a model family that quept does not know, with a recipe whose rules treat some linears differently.

python examples/custom_architecture.py
"""

import tempfile

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import quept
from quept.models import Architecture, Residual, Site, Values


class MyConfig(LlamaConfig):
    """The configuration of a family of one's own."""

    model_type = "my_family"


class MyForCausalLM(LlamaForCausalLM):
    """Its model; a real one would have modules of its own."""

    config_class = MyConfig


AutoConfig.register("my_family", MyConfig)
AutoModelForCausalLM.register(MyConfig, MyForCausalLM)
qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
gate_up = ("mlp.gate_proj", "mlp.up_proj")
MY_FAMILY = Architecture(
    model_type="my_family",
    blocks="model.layers",
    linears=(*qkv, "self_attn.o_proj", *gate_up, "mlp.down_proj"),
    shared_inputs=(qkv, gate_up),
    sites=(
        Site("input_layernorm", qkv),
        Site("self_attn.v_proj", ("self_attn.o_proj",), Values()),
        Site("post_attention_layernorm", gate_up),
        Site("mlp.up_proj", ("mlp.down_proj",)),
    ),
    residual=Residual(("self_attn.o_proj", "mlp.down_proj")),
)
quept.register_architecture(MY_FAMILY)

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
model = MyForCausalLM(MyConfig(vocab_size=128, **sizes)).eval()
rules = ({"match": "model.layers.0.mlp.down_proj", "ignore": True}, {"match": "*.self_attn.*", "group_size": 32})
recipe = quept.load_recipe("best").updated(rules=rules)
with tempfile.TemporaryDirectory() as folder:
    windows = torch.randint(128, (16, 32))
    quept.calibrate(model, f"{folder}/elastic", data=windows, recipe=recipe, bits="2,4,8", epochs=1)
    loaded = quept.load(f"{folder}/elastic", 4)
    print(type(loaded.model.layers[0].mlp.down_proj).__name__, type(loaded.model.layers[1].mlp.down_proj).__name__)
