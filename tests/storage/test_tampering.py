"""An artifact whose makers also forged its checksums is still refused where it cannot be right."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import quept
from quept.errors import CorruptArtifact
from quept.storage.manifest import record_files, sealed

SHARD = "elastic-00001-of-00002.safetensors"
UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def artifact(tiny_model, windows, tmp_path):
    paper = quept.load_recipe("paper").with_bits((2, 8))
    recipe = paper.updated(adapter=paper.adapter.updated(rank=2), reconstruction=paper.reconstruction.updated(epochs=1))
    quept.calibrate(tiny_model("llama"), tmp_path / "artifact", data=windows, recipe=recipe)
    return tmp_path / "artifact"


def forge(artifact: Path, **manifest: Any) -> None:
    """Recompute all checksums, and change entries of the manifest."""
    path = artifact / "quept.json"
    data = json.loads(path.read_text())
    data["files"] = {name: record.model_dump() for name, record in record_files(artifact).items()}
    data.update(manifest)
    path.write_text(json.dumps(sealed(data)))


def change_tensors(artifact: Path, change: Any) -> None:
    tensors = load_file(artifact / SHARD)
    change(tensors)
    save_file(tensors, artifact / SHARD)
    forge(artifact)


TENSORS = {
    "missing": lambda t: t.pop(f"{UP}.weight"),
    "extra": lambda t: t.update(more=torch.ones(2)),
    "shape": lambda t: t.update({f"{UP}.weight": torch.ones(3, 3)}),
    "weight's dtype": lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].half()}),
    "adapter's dtype": lambda t: t.update({f"{UP}.A": t[f"{UP}.A"].double()}),
    "integers": lambda t: t.update({f"{UP}.A": t[f"{UP}.A"].int()}),
    "NaN": lambda t: t[f"{UP}.clipping.2"].fill_(float("nan")),
    "infinity": lambda t: t[f"{UP}.B"].fill_(float("inf")),
}


@pytest.mark.parametrize("name", TENSORS)
def test_wrong_tensors_are_refused(artifact, name):
    change_tensors(artifact, TENSORS[name])
    with pytest.raises(CorruptArtifact):
        quept.load(artifact)


def test_artifacts_from_before_keys_were_centred_are_read_with_none(artifact):
    center = "model.layers.0.self_attn.key_values.center"
    assert load_file(artifact / SHARD)[center].abs().sum() > 0
    change_tensors(artifact, lambda tensors: tensors.pop(center))
    model = quept.load(artifact, "w2kv4")
    assert model.state_dict()[center].abs().sum() == 0
    assert model.state_dict()[center.replace(".0.", ".1.")].abs().sum() > 0
    assert model(torch.arange(5).unsqueeze(0)).logits.isfinite().all()


CONFIG = {
    "hidden_size": [10**9, -64, "64", None],
    "num_hidden_layers": [0, 1, 10**6],
    "num_attention_heads": [0, 7, -8],
    "num_key_value_heads": [0],
    "vocab_size": [10**12, -1],
    "hidden_act": [3, "nope"],
    "model_type": ["gpt2", "nope"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in CONFIG.items() for value in values])
def test_an_absurd_configuration_is_refused_at_once(artifact, key, value):
    path = artifact / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    forge(artifact)
    with pytest.raises(CorruptArtifact):
        quept.load(artifact)


@pytest.mark.parametrize(
    "change",
    [{"dtype": "float99"}, {"dtype": "bfloat16"}, {"version": True}, {"version": 1.0}, {"architecture": "nope"}],
)
def test_a_manifest_at_odds_with_its_files_is_refused(artifact, change):
    forge(artifact, **change)
    with pytest.raises(CorruptArtifact):
        quept.load(artifact)


def test_a_rank_that_no_layer_has_is_a_damaged_file_and_not_the_callers_fault(artifact):
    recipe = json.loads((artifact / "quept.json").read_text())["recipe"]
    recipe["adapter"]["rank"] = 10**12
    forge(artifact, recipe=recipe)
    with pytest.raises(CorruptArtifact, match="rank"):
        quept.load(artifact)


def test_a_file_that_transformers_would_read_must_be_listed(artifact):
    (artifact / "README.md").write_text("anyone may describe an artifact")
    quept.load(artifact)
    (artifact / "added_tokens.json").write_text("{}")
    with pytest.raises(CorruptArtifact, match=r"added_tokens\.json"):
        quept.load(artifact)


def test_an_unlisted_configuration_is_refused(artifact):
    path = artifact / "quept.json"
    data = json.loads(path.read_text())
    del data["files"]["config.json"]
    path.write_text(json.dumps(sealed(data)))
    with pytest.raises(CorruptArtifact, match=r"config\.json"):
        quept.load(artifact)


def test_a_model_saved_in_another_dtype_says_so_and_loads_as_it_was(artifact, windows, tmp_path):
    narrow = quept.load(artifact, 8, dtype=torch.bfloat16)
    quept.save(narrow, tmp_path / "narrow")
    again = quept.load(tmp_path / "narrow", 8)
    assert again.quept_manifest.dtype == "bfloat16"
    assert torch.equal(again(windows).logits, narrow(windows).logits)


def test_weights_derived_in_inference_mode_serve_outside_it(artifact, windows):
    model = quept.load(artifact, 2)
    with torch.inference_mode():
        inside = model(windows).logits
    embedded = model.get_input_embeddings()(windows).requires_grad_()
    outside = model(inputs_embeds=embedded).logits
    outside.sum().backward()
    assert torch.equal(inside, outside.detach())
    assert embedded.grad is not None


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
def test_an_artifact_of_any_dtype_loads_in_any_other(tiny_model, windows, tmp_path, stored, held):
    paper = quept.load_recipe("paper").with_bits((2, 8))
    recipe = paper.updated(adapter=paper.adapter.updated(rank=2), reconstruction=paper.reconstruction.updated(epochs=1))
    quept.calibrate(tiny_model("gemma2", dtype=stored), tmp_path / "out", data=windows, recipe=recipe)
    model = quept.load(tmp_path / "out", 8, dtype=held)
    assert {parameter.dtype for name, parameter in model.named_parameters() if name.endswith("norm.weight")} == {held}
    layer = model.model.layers[0].mlp.up_proj
    assert layer.weight.dtype == layer.master().dtype == held
    assert {value.dtype for value in layer.learned().values()} == {torch.float32}
    assert torch.isfinite(model(windows).logits).all()


# In a store


@pytest.fixture
def store(tiny_model, windows, tmp_path):
    best = quept.load_recipe("best").with_bits((2, 5, 8))
    training = best.reconstruction.updated(epochs=0, clip_init=4.0)
    recipe = best.updated(adapter=best.adapter.updated(rank=2), reconstruction=training)
    quept.calibrate(tiny_model("llama"), tmp_path / "store", data=windows, recipe=recipe)
    return tmp_path / "store"


def set_first(name: str, value: float) -> Any:
    return lambda tensors: tensors[f"{UP}.{name}"].view(-1)[:1].fill_(value)


STORED = {
    "a master in floats": (lambda t: t.update({f"{UP}.store.master": t[f"{UP}.store.master"].float()}), "int8"),
    "a code that has no opposite": (set_first("store.master", -128), "-128"),
    "an infinite scale": (set_first("store.master_scale", float("inf")), "infinity"),
    "a huge scale": (set_first("store.master_scale", 1e30), "beyond"),
    "a scale of zero": (set_first("store.master_scale", 0.0), "above zero"),
    "a negative scale": (set_first("store.adapter_scale", -1.0), "above zero"),
    "a denormal scale": (set_first("store.adapter_scale", 1e-40), "above zero"),
    "a scale that is NaN": (set_first("store.adapter_scale", float("nan")), "NaN"),
    "a wide scale": (
        lambda t: t.update({f"{UP}.store.master_scale": t[f"{UP}.store.master_scale"].float()}),
        "bfloat16",
    ),
    "shares of another width": (
        lambda t: t.update({f"{UP}.store.shares.8": t[f"{UP}.store.shares.5"].clone()}),
        "no layer has",
    ),
    "half an adapter": (lambda t: t.pop(f"{UP}.store.down"), "lacks"),
    "shares of fewer rows": (
        lambda t: t.update({f"{UP}.store.shares.2": t[f"{UP}.store.shares.2"][:, 1:].clone()}),
        "shape",
    ),
}


@pytest.mark.parametrize("name", STORED)
def test_what_no_store_holds_is_refused_in_one_line(store, name):
    change, words = STORED[name]
    change_tensors(store, change)
    with pytest.raises(CorruptArtifact, match=words) as caught:
        quept.load(store)
    assert "\n" not in str(caught.value)
