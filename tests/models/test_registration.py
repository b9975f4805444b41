"""A family from outside the package: registered, calibrated, loaded, run, and planned on the command line."""

import json
from dataclasses import replace

import pytest
import torch
from command_line import run
from families import GROUPED
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

import quept
from quept.errors import InvalidInput
from quept.models import ARCHITECTURES, Architecture, Residual, Site, Values, registry
from quept.precision import elastic_linears


class RiverConfig(LlamaConfig):
    model_type = "river"


class RiverBlock(nn.Module):
    """A decoder layer of Llama with modules under names of its own."""

    def __init__(self, config, index):
        super().__init__()
        self.mix = LlamaAttention(config, index)
        self.mlp = LlamaMLP(config)
        self.first, self.second = nn.RMSNorm(config.hidden_size), nn.RMSNorm(config.hidden_size)

    def forward(self, hidden_states, **kwargs):
        hidden_states = hidden_states + self.mix(hidden_states=self.first(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.second(hidden_states))


class RiverForCausalLM(LlamaForCausalLM):
    config_class = RiverConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.layers = nn.ModuleList(RiverBlock(config, index) for index in range(config.num_hidden_layers))


AutoConfig.register("river", RiverConfig)
AutoModelForCausalLM.register(RiverConfig, RiverForCausalLM)

ATTENTION, GATED = ("mix.q_proj", "mix.k_proj", "mix.v_proj"), ("mlp.gate_proj", "mlp.up_proj")
RIVER = Architecture(
    model_type="river",
    blocks="model.layers",
    linears=(*ATTENTION, "mix.o_proj", *GATED, "mlp.down_proj"),
    shared_inputs=(ATTENTION, GATED),
    sites=(
        Site("first", ATTENTION),
        Site("mix.v_proj", ("mix.o_proj",), Values()),
        Site("second", GATED),
        Site("mlp.up_proj", ("mlp.down_proj",)),
    ),
    attention="mix",
    outer=("lm_head",),
    residual=Residual(("mix.o_proj", "mlp.down_proj")),
)
WITHOUT_SITES = replace(RIVER, sites=(), residual=None)


@pytest.fixture(autouse=True)
def only_shipped_families():
    """No test leaves a family registered for the next one."""
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)


@pytest.fixture(scope="module")
def checkpoint(tiny_tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("river") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RiverForCausalLM(RiverConfig(**GROUPED))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(directory)
    tiny_tokenizer.save_pretrained(directory)
    (directory.parent / "text.txt").write_text("The river runs to the sea, and the sea is not full.\n" * 40)
    return directory


def quick():
    recipe = quept.load_recipe("weight-activation-best").with_bits((3, 5, 8))
    return recipe.updated(reconstruction=recipe.reconstruction.updated(epochs=2, batch_size=4))


def calibrated(model, output, windows, **options):
    return quept.calibrate(model, output, data=windows, recipe=quick(), compiled=False, **options).directory


@torch.no_grad()
def logits(model, windows):
    return model(windows, use_cache=False).logits


@pytest.mark.parametrize("architecture", [RIVER, WITHOUT_SITES], ids=["sites", "without sites"])
def test_a_registered_family_runs_at_every_bit_width_and_is_planned(architecture, checkpoint, windows, tmp_path, capfd):
    quept.register_architecture(architecture)
    artifact, text = tmp_path / "artifact", checkpoint.parent / "text.txt"
    original = AutoModelForCausalLM.from_pretrained(checkpoint)
    calibrated(checkpoint, artifact, windows)
    model = quept.load(artifact, packed=False)
    expected, errors = logits(original, windows), []
    for bits in (3, 5, 8):
        quept.set_precision(model, bits)
        errors.append(float((logits(model, windows) - expected).norm() / expected.norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1
    quept.save(model, tmp_path / "again")
    assert logits(quept.load(tmp_path / "again", 8, packed=False), windows).equal(logits(model, windows))
    layers = elastic_linears(model)
    for index in range(2):
        first, *others = (layers[f"model.layers.{index}.{path}"].input for path in ATTENTION)
        assert first is not None
        assert all(each is first for each in others), "one tensor is rounded once for all that read it"
    table, plan = tmp_path / "table.json", tmp_path / "plan.json"
    amount = ("--samples", "2", "--sequence-length", "16", "--quiet")
    assert run("sensitivity", artifact, "--data", text, "-o", table, *amount) == 0
    assert run("allocate", artifact, "--sensitivity", table, "-o", plan, "--average-bits", "5", "--quiet") == 0
    bits = json.loads(plan.read_text())["bits"]
    assert len(set(bits.values())) > 1
    for index in range(2):
        for group in architecture.shared_inputs:
            assert len({bits[f"model.layers.{index}.{path}"] for path in group}) == 1
    assert run("evaluate", artifact, "--data", text, "--plan", plan, "--sequence-length", "16", "--quiet") == 0
    capfd.readouterr()


def test_one_calibration_needs_no_registration_but_loading_does(checkpoint, windows, tmp_path):
    with pytest.raises(InvalidInput, match=r"'river' is not known.*register_architecture.*architecture="):
        calibrated(checkpoint, tmp_path / "out", windows)
    directory = calibrated(checkpoint, tmp_path / "out", windows, architecture=RIVER)
    assert "river" not in ARCHITECTURES
    with pytest.raises(InvalidInput, match=r"'river', which is not registered here.*register_architecture"):
        quept.load(directory)
    quept.register_architecture(RIVER)
    quept.load(directory, 5)


def test_an_architecture_of_another_family_is_refused(tiny_model, windows, tmp_path):
    with pytest.raises(InvalidInput, match=r"for model_type 'river', but the model is a 'llama'"):
        calibrated(tiny_model("llama"), tmp_path / "out", windows, architecture=RIVER)


def test_what_is_registered_is_an_architecture_and_new():
    with pytest.raises(InvalidInput, match=r"is a dict; give a quept.models.Architecture"):
        quept.register_architecture({"model_type": "river"})
    other = replace(ARCHITECTURES["llama"], outer=())
    with pytest.raises(InvalidInput, match=r"'llama' is known already; pass replace=True"):
        quept.register_architecture(other)
    quept.register_architecture(other, replace=True)
    assert registry.architecture_of("llama") is other


WRONG_PATHS = {
    "blocks": ({"blocks": "model.stack"}, r"blocks is 'model.stack', which is missing in RiverForCausalLM"),
    "no list": ({"blocks": "lm_head"}, r"'lm_head', which is a Linear in RiverForCausalLM; name a ModuleList"),
    "linear": ({"linears": (*RIVER.linears, "mlp.gte_proj")}, r"has no model.layers.0.mlp.gte_proj; correct the path"),
    "norm": ({"sites": (Site("third", ATTENTION),)}, r"has no model.layers.0.third;"),
    "attention": ({"attention": "self_attn"}, r"has no model.layers.0.self_attn;"),
    "writer": ({"residual": Residual(("mix.out",))}, r"has no model.layers.0.mix.out;"),
    "outer": ({"outer": ("head",)}, r"has no head;"),
    "two": ({"outer": ("head",), "attention": "attn"}, r"has no model.layers.0.attn, head;"),
    "a norm to quantize": ({"linears": (*RIVER.linears, "first")}, r"layers.0.first in linears is a RMSNorm, not a"),
}


@pytest.mark.parametrize("name", WRONG_PATHS)
def test_a_path_that_the_model_does_not_have_is_told(name, checkpoint, windows, tmp_path):
    changes, message = WRONG_PATHS[name]
    with pytest.raises(InvalidInput, match=message):
        calibrated(checkpoint, tmp_path / "out", windows, architecture=replace(RIVER, **changes))
    assert not list(tmp_path.iterdir())


def test_an_optional_path_may_be_missing(checkpoint, windows, tmp_path):
    both = replace(
        RIVER, linears=(*RIVER.linears, "mlp.extra"), outer=("lm_head", "head"), optional=("mlp.extra", "head")
    )
    directory = calibrated(checkpoint, tmp_path / "out", windows, architecture=both)
    quept.register_architecture(both)
    assert len(elastic_linears(quept.load(directory))) == 2 * len(RIVER.linears)
