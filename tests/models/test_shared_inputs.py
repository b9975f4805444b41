"""Linears that read the same tensor: named by the architecture, checked, and found in every block."""

from dataclasses import replace

import pytest
from families import FAMILIES, VISION

from quept.errors import InvalidInput
from quept.models import ARCHITECTURES, BlockContext, Site, architecture_of

LLAMA = ARCHITECTURES["llama"]


def read_behind_one_site(architecture):
    """The groups that follow from the sites, where every group is behind one."""
    group_of = {path: site.consumers for site in architecture.sites for path in site.consumers}
    return tuple(dict.fromkeys(group_of.get(path, (path,)) for path in architecture.linears))


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_shared_inputs_agree_with_the_sites_of_every_family(family):
    architecture = ARCHITECTURES[family]
    assert architecture.inputs == read_behind_one_site(architecture)
    assert replace(architecture, sites=(), residual=None).inputs == architecture.inputs


@pytest.fixture(params=[*FAMILIES, *VISION])
def model(request, tiny_model, tiny_classifier):
    return (tiny_model if request.param in FAMILIES else tiny_classifier)(request.param)


def test_every_block_has_its_groups_and_every_path_exists(model):
    architecture = architecture_of(model.config.model_type)
    architecture.check(model)
    found = []
    for index in range(len(architecture.block_list(model))):
        context = BlockContext.of(architecture, model, index)
        assert context.architecture.inputs == read_behind_one_site(context.architecture)
        found += [tuple(f"{context.path}.{path}" for path in group) for group in context.architecture.inputs]
    assert architecture.shared_input_groups(model) == found
    modules = dict(model.named_modules())
    assert all(path in modules for group in found for path in group)
    fused = any("qkv" in path or "query_key_value" in path or "c_attn" in path for path in architecture.linears)
    assert fused != any(len(group) == 3 for group in found)


MISTAKES = {
    "no linear": ({"shared_inputs": (("self_attn.q_proj", "self_attn.qproj"),)}, "'self_attn.qproj', which is not in"),
    "twice": ({"shared_inputs": (*LLAMA.shared_inputs, ("self_attn.q_proj", "mlp.down_proj"))}, "q_proj' twice"),
    "apart": ({"shared_inputs": LLAMA.shared_inputs[1:]}, "of 'input_layernorm', .* are not in one group"),
    "across": ({"sites": (Site("norm", ("self_attn.q_proj", "mlp.up_proj")),)}, "of 'norm', .* are not in one group"),
    "no tuple": ({"linears": "self_attn.q_proj"}, "linears is 'self_attn.q_proj'; give a tuple of paths"),
    "flat": ({"shared_inputs": ("self_attn.q_proj", "self_attn.k_proj")}, r"shared_inputs\[0\] is 'self_attn.q_proj'"),
    "task": ({"task": "text-generation"}, "task is 'text-generation'; give a Task"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_when_the_architecture_is_made(name):
    changes, message = MISTAKES[name]
    with pytest.raises(InvalidInput, match=f"In the architecture 'llama', .*{message}"):
        replace(LLAMA, **changes)


def test_left_out_linears_leave_their_groups():
    left = LLAMA.with_linears(path for path in LLAMA.linears if path not in ("self_attn.k_proj", "mlp.up_proj"))
    assert left.shared_inputs == (("self_attn.q_proj", "self_attn.v_proj"),)
    assert ("mlp.gate_proj",) in left.inputs
    assert left.sites == LLAMA.sites
