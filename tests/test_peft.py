"""LoRA on loaded models, through PEFT's own functions."""

from contextlib import suppress

import pytest
import torch

import quept
from quept.errors import InvalidInput

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def artifacts(tiny_model, windows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")
    for name in ("best", "paper", "weight-activation"):
        quept.calibrate(tiny_model("llama"), folder / name, data=windows[:2], recipe=name, bits="2-8", epochs=0)
    return folder


def config(**options):
    return peft.LoraConfig(**{"r": 4, "target_modules": TARGETS, "init_lora_weights": False, **options})


def logits(model, windows):
    with torch.no_grad():
        return model(windows).logits


@pytest.mark.parametrize("recipe", ["best", "paper", "weight-activation"])
def test_lora_adds_to_the_output_at_every_bit_width_and_trains(artifacts, windows, recipe):
    model = quept.load(artifacts / recipe, exact=True)
    plain = {bits: logits(model, windows) for bits in range(2, 9) if quept.set_precision(model, bits) is None}
    adapted = peft.get_peft_model(model, config())
    layer = model.model.layers[0].self_attn.v_proj
    for bits, before in plain.items():
        quept.set_precision(adapted, bits)
        assert not torch.equal(logits(adapted, windows), before)
        with adapted.disable_adapter():
            assert torch.equal(logits(adapted, windows), before)
        hidden = torch.randn(3, 32)
        low_rank = layer.lora_B["default"](layer.lora_A["default"](hidden)) * layer.scaling["default"]
        torch.testing.assert_close(layer(hidden), layer.base_layer(hidden) + low_rank)
        adapted.zero_grad()
        adapted(windows[:1], labels=windows[:1]).loss.backward()
        trained = {name for name, each in adapted.named_parameters() if each.grad is not None and each.grad.abs().sum()}
        assert len(trained) == 2 * len(TARGETS) * 2
        assert all("lora_" in name for name in trained)
    optimizer = torch.optim.SGD((each for each in adapted.parameters() if each.requires_grad), 0.05)
    losses = []
    for step in range(6):
        with quept.at_precision(adapted, 2 + step % 2):
            optimizer.zero_grad()
            loss = adapted(windows[:2], labels=windows[:2]).loss
            loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[4] < losses[0]
    assert losses[5] < losses[1]


def test_an_adapter_is_saved_and_loaded_again(artifacts, windows, tmp_path):
    adapted = peft.get_peft_model(quept.load(artifacts / "best", 4), config())
    found = logits(adapted, windows)
    adapted.save_pretrained(tmp_path / "adapter")
    assert torch.equal(
        logits(peft.PeftModel.from_pretrained(quept.load(artifacts / "best", 4), tmp_path / "adapter"), windows), found
    )
    model = quept.load(artifacts / "best", 4)
    model.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(model, windows), found)
    with suppress(ValueError):  # transformers asks for a newer PEFT than there is to write adapters alone
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "model.safetensors").exists()
    with pytest.raises(InvalidInput, match="has an adapter at"):
        quept.save(model, tmp_path / "saved")


def test_an_adapter_of_the_original_fits_where_hidden_states_are_the_same(artifacts, tiny_model, windows, tmp_path):
    original = tiny_model("llama")
    original.name_or_path = "org/original"
    adapted = peft.get_peft_model(original, config())
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    model = quept.load(artifacts / "best")
    before = (logits(adapted, windows) - logits(model, windows)).abs().mean()
    model.load_adapter(str(tmp_path))
    assert (logits(adapted, windows) - logits(model, windows)).abs().mean() < before / 5
    for recipe in ("paper", "weight-activation"):
        with pytest.raises(InvalidInput, match=r"made on org/original.*only adapters made on it fit"):
            quept.load(artifacts / recipe).load_adapter(str(tmp_path))


def test_what_elastic_weights_cannot_take_is_refused(artifacts):
    for settings, message in (
        (config(use_dora=True), "use_dora needs one weight"),
        (config(init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
        (config(layer_replication=[(0, 2)]), "layer_replication"),
        (peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "kind IA3"),
    ):
        with pytest.raises(InvalidInput, match=message):
            peft.get_peft_model(quept.load(artifacts / "best"), settings)
    for recipe in ("best", "paper"):
        adapted = peft.get_peft_model(quept.load(artifacts / recipe), config())
        for merge in (adapted.merge_adapter, adapted.merge_and_unload):
            with pytest.raises(InvalidInput, match="cannot be merged"):
                merge()
        with pytest.raises(InvalidInput, match="no plain checkpoint"):
            adapted.get_base_model().save_pretrained("never-written")


def test_a_second_adapter_and_unloading(artifacts, windows):
    model = quept.load(artifacts / "best", 3)
    before = logits(model, windows)
    adapted = peft.get_peft_model(model, config())
    first = logits(adapted, windows)
    adapted.add_adapter("other", config(r=2))
    adapted.set_adapter("other")
    assert not torch.equal(logits(adapted, windows), first)
    adapted.set_adapter("default")
    assert torch.equal(logits(adapted, windows), first)
    assert torch.equal(logits(adapted.unload(), windows), before)
