"""The head of a language model at a bit-width of its own, tied to the embedding or not."""

import pytest
import torch

import quept
from quept.layers import ElasticLinear

# With a stored master and without, tied to the embedding and not.
CASES = [("llama", "best", False), ("llama", "best", True), ("gpt2", "paper", False), ("gpt_neox", "paper", True)]


def recipe(name):
    chosen = quept.load_recipe(name)
    adapter = chosen.adapter.updated(rank=2)
    return chosen.updated(reconstruction=chosen.reconstruction.updated(epochs=1), adapter=adapter, outer_bits=8)


@torch.no_grad()
def logits(model, windows):
    return model(windows[:1]).logits


@pytest.mark.parametrize(("family", "name", "tied"), CASES)
def test_a_head_has_its_bit_width_and_the_embedding_stays(family, name, tied, tiny_model, windows, tmp_path):
    model = tiny_model(family, tie_word_embeddings=tied)
    head, embedding = model.get_output_embeddings().weight.clone(), model.get_input_embeddings().weight.clone()
    expected = logits(model, windows)
    quept.calibrate(model, tmp_path / "one", data=windows, recipe=recipe(name))
    loaded = quept.load(tmp_path / "one", 4, packed=False)
    assert torch.equal(loaded.get_input_embeddings().weight, embedding)
    found = loaded.get_output_embeddings()
    assert isinstance(found, ElasticLinear)
    assert found.path == "lm_head"
    # Within half a step of 8 bits, by row; a master's steps are up to a 128th longer than they need to be.
    steps = (head.amax(1, keepdim=True) - head.amin(1, keepdim=True)).clamp_min(2 * head.abs().amax()) / 255
    assert ((found.derive(8) - head).abs() <= 0.51 * steps * (1 + 2**-7)).all()
    before = logits(loaded, windows)
    quept.set_precision(loaded, None)
    if name == "paper":
        assert torch.equal(logits(loaded, windows), expected), "full precision is the model as it was"
    quept.set_precision(loaded, 4)
    quept.save(loaded, tmp_path / "two")
    assert torch.equal(logits(quept.load(tmp_path / "two", 4, packed=False), windows), before)
