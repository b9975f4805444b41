"""What a tensor goes through before linears read it, once for all of them."""

import copy

import pytest
import torch
from torch import nn

from quept import ops
from quept.config import Activations, Adapter, BitGroups, Granularity, WeightSpec
from quept.layers import ElasticInput, Execution, WeightCache, learned_names, nearest, stored_tensors
from quept.layers.replace import elastic_like, replace_linears
from quept.numerics.hadamard import Rotation

SPEC = WeightSpec(
    groups=BitGroups.partition((4, 8)), granularity=Granularity(grouped_bits=()), adapter=Adapter(kind="none")
)
SIZE = 16


class Counting:
    """A rotation that counts how often it is asked."""

    def __init__(self):
        self.calls, self.rotation = 0, Rotation.of(SIZE)

    def __call__(self, values):
        self.calls += 1
        return self.rotation(values)


def block(transform=None, bits=(4, 8)):
    torch.manual_seed(0)
    module = nn.ModuleDict({name: nn.Linear(SIZE, 3) for name in ("q", "k")})
    shared = ElasticInput(Activations(bits=bits), ("b.q", "b.k"), transform, torch.device("cpu"))
    replace_linears(module, "b", {"q": SPEC, "k": SPEC}, {"q": shared, "k": shared}, elastic_like)
    return module


def at(module, bits, activation_bits):
    for linear in module.values():
        linear.bits, linear.activation_bits = bits, activation_bits
    return module


def hidden(seed=0):
    return torch.randn(2, 5, SIZE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_readers_share_one_computation_and_see_the_same_as_alone():
    transform = Counting()
    module = at(block(transform), 8, 4)
    states = hidden()
    outputs = [linear(states) for linear in module.values()]
    assert transform.calls == 1
    for linear, output in zip(module.values(), outputs, strict=True):
        inputs = linear.input._rounded(states, 4, False)
        assert torch.equal(output, nn.functional.linear(inputs, linear.derive(8), linear.bias))


@torch.no_grad()
def test_a_tensor_that_was_written_to_is_computed_anew():
    module = at(block(), None, 4)
    states = hidden()
    first = module["q"](states)
    module["k"](states)
    states.mul_(-1)
    assert torch.allclose(module["q"](states) - module["q"].bias, module["q"].bias - first, atol=1e-5)
    # Also when the other reader never came.
    again = module["q"](states)
    states.mul_(-1)
    assert not torch.allclose(module["q"](states), again)


@torch.no_grad()
def test_another_bit_width_or_tensor_is_not_taken_for_the_last_one():
    module = at(block(), None, 4)
    states = hidden()
    module["q"](states)
    module["k"].activation_bits = 8
    assert torch.equal(module["k"](states), copy.deepcopy(module)["k"](states))
    module["q"](states)
    assert not torch.equal(module["k"](hidden(1)), module["k"](states))


@torch.no_grad()
def test_nothing_is_kept_once_every_reader_was_served():
    module = at(block(), None, 4)
    module["q"](states := hidden())
    assert module["q"].input._kept is not None
    module["k"](states)
    assert module["q"].input._kept is None


@torch.no_grad()
def test_error_falls_with_the_bit_width_and_is_none_without_one():
    module, plain = block(bits=(2, 4, 8)), block()
    exact = plain["q"](hidden())
    errors = [float((at(module, None, bits)["q"](hidden()) - exact).norm()) for bits in (2, 4, 8, None)]
    assert errors[0] > errors[1] > errors[2] > errors[3] == 0


def test_what_is_shared_is_stored_once_under_its_first_reader():
    module = block()
    stored = [name for name in stored_tensors(module) if "input." in name]
    assert stored == ["q.input.quantizer.clipping.4", "q.input.quantizer.clipping.8"]
    assert {"q.input.quantizer.clipping.4", "k.input.quantizer.clipping.4", "k.A", "q.clipping.8"} <= learned_names(
        module
    )
    other = block()
    changed = {name: tensor + 1 for name, tensor in stored_tensors(module).items()}
    other.load_state_dict(changed, strict=False, assign=True)
    assert other["k"].input.quantizer.clipping["4"].item() == module["q"].input.quantizer.clipping["4"].item() + 1


def test_what_was_learned_stays_in_float32_when_the_model_is_cast():
    module = block().to(torch.bfloat16)
    assert module["k"].input.quantizer.clipping["4"].dtype == torch.float32
    assert module["k"].weight.dtype == torch.bfloat16


def test_shares_learn():
    module = at(block(), None, 4)
    linear = module["q"]
    linear.input.quantizer.override = linear.input.quantizer.grid(4)
    logit = linear.input.quantizer.clipping["4"].requires_grad_(True)
    linear.input.quantizer.override = linear.input.quantizer.grid(4)
    linear(hidden()).square().sum().backward()
    assert logit.grad.abs().item() > 0


def test_the_baseline_clips_nothing():
    made = ElasticInput(Activations(bits=(4,)), ("b.q",), None, torch.device("cpu"))
    assert made.quantizer.min_max_grid(4).clip_ratio.item() == 1
    assert made.quantizer.grid(4).clip_ratio.item() == pytest.approx(0.982, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "activation_bits"), [(8, 8), (4, 8), (8, 4), (4, 4)])
def test_products_of_integers_are_what_they_stand_for(bits, activation_bits, dtype):
    if not ops.has_integer_product(torch.device("cpu")):
        pytest.skip("this processor has no exact integer product")
    module = at(block(Rotation.of(SIZE)).to(dtype), bits, activation_bits)
    states = hidden().to(dtype)
    simulated = [linear(states) for linear in module.values()]
    kept = WeightCache()
    for linear in module.values():
        linear.execution, linear.weight_cache = Execution(integers=True), kept
    multiplied = [linear(states) for linear in module.values()]
    for one, other in zip(multiplied, simulated, strict=True):
        assert one.dtype == dtype
        # The simulated product is of values that are rounded to bfloat16 themselves.
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
        torch.testing.assert_close(one, other, **tolerance)
    assert kept.bytes_by_bits() == {bits: kept.resident}
    assert kept.resident < 2 * (SIZE * 3 * 4), "codes take a byte each"
    # Not while gradients are needed, nor for the baseline.
    with torch.enable_grad():
        assert torch.allclose(module["q"](states), simulated[0], rtol=1e-2)
    with nearest(module.values(), bits, activation_bits):
        assert not torch.equal(module["q"](states), multiplied[0])
