"""Models on packed weights give what the simulation gives, and change between bit-widths at will."""

import copy

import pytest
import torch

import quept
from quept import ops
from quept.generation import cache_arguments, cache_of
from quept.layers.size import resident_bytes
from quept.precision import Parts, make_resident

FAMILIES = ("llama", "gpt2")


@pytest.fixture(scope="module", params=FAMILIES)
def artifact(request, tiny_model, windows, tmp_path_factory):
    output = tmp_path_factory.mktemp("packed") / request.param
    recipe = quept.load_recipe("best").updated(
        reconstruction={"epochs": 1, "clip_init": "search"},
        granularity={"group_size": 32, "grouped_bits": (2, 3, 4)},
    )
    quept.calibrate(tiny_model(request.param), output, data=windows, recipe=recipe)
    return output


@torch.no_grad()
def logits(model, windows):
    return model(windows[:2]).logits


def close(one, other):
    """Within a thousandth of the largest."""
    return (one - other).abs().max() <= 1e-3 * other.abs().max()


@pytest.mark.parametrize("bits", range(2, 9))
def test_float_activations_give_the_simulation(artifact, windows, bits):
    simulated = logits(quept.load(artifact, bits, packed=False), windows)
    assert close(logits(quept.load(artifact, bits, packed=True, exact=True), windows), simulated)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_are_those_of_the_simulation_bit_for_bit(artifact, bits):
    for layer in Parts.of(quept.load(artifact, bits)).linears.values():
        codes, grid = layer.codes(bits)
        packed = layer.pack(bits)
        assert torch.equal(packed.unpacked(), codes.flatten(1)[:, : layer.in_features])
        assert torch.equal(packed.zero_point.float(), grid.zero_point.squeeze(-1))
        torch.testing.assert_close(packed.dequantize(torch.float32), layer.derive(bits), rtol=1e-3, atol=1e-7)


@torch.no_grad()
def decoded(model, windows):
    """Logarithms of the predictions, one token at a time."""
    cache, found = None, []
    for place in range(windows.shape[1]):
        result = model(windows[:2, place : place + 1], **cache_arguments(cache), use_cache=True)
        cache = cache_of(result)
        found.append(result.logits[:, -1].log_softmax(-1))
    return torch.stack(found)


@pytest.mark.skipif(not ops.available(), reason="single tokens are rounded by kernels alone")
def test_rounding_single_tokens_costs_little_beside_rounding_weights(artifact, windows):
    exact = decoded(quept.load(artifact, 4, exact=True), windows)
    fast = decoded(quept.load(artifact, 4), windows)
    full = decoded(quept.load(artifact, packed=False), windows)
    by_activations, by_weights = (
        (one.exp() * (one - other)).sum(-1).mean() for one, other in ((exact, fast), (full, exact))
    )
    assert 0 < by_activations < 0.05 * by_weights


def test_switching_to_a_plan_and_back_restores_every_bit(artifact, windows):
    model = quept.load(artifact, 4)
    before = logits(model, windows)
    first = next(iter(Parts.of(model).linears))
    for other in (2, {first: 8}, None, {"*": 3, first: None}):
        quept.set_precision(model, other)
        assert not torch.equal(logits(model, windows), before)
    quept.set_precision(model, 4)
    assert torch.equal(logits(model, windows), before)


def test_only_what_is_used_is_resident_and_takes_its_bit_width(artifact, windows):
    model = quept.load(artifact, 4)
    layers = Parts.of(model).linears.values()
    weight_cache = next(iter(layers)).weight_cache
    assert weight_cache.resident == 0, "loading derives nothing"
    logits(model, windows)
    quept.set_precision(model, 2)
    logits(model, windows)
    held = weight_cache.bytes_by_bits()
    assert set(held) == {2, 4}
    assert held[2] < held[4]
    assert held == {bits: resident_bytes(model, bits) for bits in (2, 4)}


def test_a_bit_width_made_ahead_is_there_when_it_is_switched_to(artifact, windows, monkeypatch):
    model = quept.load(artifact, 4)
    expected = logits(quept.load(artifact, 8), windows)
    logits(model, windows)
    linears = Parts.of(model).linears
    assert quept.prefetch(model, 8).result() == len(linears)
    assert next(iter(linears.values())).bits == 4, "it runs as before"
    for layer in linears.values():
        monkeypatch.setattr(layer, "pack", pytest.fail)
    quept.set_precision(model, 8)
    assert torch.equal(logits(model, windows), expected)


def test_what_is_made_ahead_does_not_push_out_what_runs(artifact, windows):
    whole = quept.load(artifact, 4)
    make_resident(whole)
    linears = Parts.of(whole).linears
    budget = next(iter(linears.values())).weight_cache.resident
    model = quept.load(artifact, 4, memory_budget=budget)
    logits(model, windows)
    assert quept.prefetch(model, 8).result() == 0
    assert next(iter(Parts.of(model).linears.values())).weight_cache.bytes_by_bits() == {4: budget}


def test_gradients_flow_through_the_dense_weight(artifact, windows):
    model = quept.load(artifact, 4)
    embedded = model.get_input_embeddings()(windows[:1]).detach().requires_grad_()
    model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad.abs().sum() > 0


def test_a_copy_of_a_model_switches_alone(artifact, windows):
    model = quept.load(artifact, 4)
    before = logits(model, windows)
    other = copy.deepcopy(model)
    quept.set_precision(other, 2)
    assert not torch.equal(logits(other, windows), before)
    assert torch.equal(logits(model, windows), before)
