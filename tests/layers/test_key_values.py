import copy
import pickle

import pytest
import torch

from quept.layers.keyvalues import KeyValues
from quept.numerics.hadamard import Rotation
from quept.numerics.keyvalues import fake_quantize


def states(size, tokens=9, heads=2, seed=0):
    return torch.randn(2, 3, heads, tokens, size, generator=torch.Generator().manual_seed(seed)).unbind(0)


# 12 and 20 have matrices of Paley's, which are not symmetric; 92 is rotated in parts.
SIZES = (8, 12, 20, 64, 92, 128)


@pytest.mark.parametrize("size", SIZES)
def test_rotated_queries_and_keys_have_the_same_products(size):
    key_values = KeyValues("path", rotates_values=True)
    queries, keys = states(size)
    rotated, _ = key_values.rotate(keys, keys)
    assert not torch.allclose(rotated, keys, atol=0.1)
    assert torch.allclose(key_values.rotate_queries(queries) @ rotated.mT, queries @ keys.mT, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_values_are_rotated_like_weights_and_back_or_left_alone(size):
    keys, values = states(size)
    rotating, leaving = KeyValues("path", rotates_values=True), KeyValues("path", rotates_values=False)
    _, rotated = rotating.rotate(keys, values)
    assert torch.allclose(rotated, Rotation.of(size)(values), atol=1e-5)
    assert torch.allclose(rotating.rotate_back(rotated), values, atol=1e-5)
    assert leaving.rotate(keys, values)[1] is values
    assert leaving.rotate_back(values) is values
    assert leaving.rotate(keys, values)[0].equal(rotating.rotate(keys, values)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantized_is_rotated_and_fake_quantized_token_by_token(dtype):
    key_values = KeyValues("path", rotates_values=True)
    key_values.bits = 3
    keys, values = (state.to(dtype) for state in states(64, tokens=40))
    together = key_values.quantize(keys, values)
    for quantized, rotated in zip(together, key_values.rotate(keys, values), strict=True):
        assert quantized.dtype == dtype
        assert quantized.equal(fake_quantize(rotated, 3))
    alone = [key_values.quantize(keys[:, :, i : i + 1], values[:, :, i : i + 1]) for i in range(40)]
    for i, quantized in enumerate(together):
        assert torch.cat([token[i] for token in alone], dim=2).equal(quantized)


def test_gradients_flow_back_through_the_rotation():
    key_values = KeyValues("path", rotates_values=True)
    key_values.bits = 8
    keys, values = (state.requires_grad_() for state in states(16))
    quantized, _ = key_values.quantize(keys, values)
    quantized.backward(torch.ones_like(quantized))
    rotated = Rotation.of(16)(keys.detach())
    inside = fake_quantize(rotated.requires_grad_(), 8)
    inside.backward(torch.ones_like(inside))
    assert torch.allclose(keys.grad, rotated.grad @ Rotation.of(16)(torch.eye(16)).T, atol=1e-5)


def test_what_was_first_used_for_inference_can_be_trained():
    key_values = KeyValues("path", rotates_values=True)
    keys, values = states(28)
    with torch.inference_mode():
        key_values.rotate(keys, values)
        key_values.rotate_back(values)
    rotated, _ = key_values.rotate(keys.requires_grad_(), values)
    (rotated.sum() + key_values.rotate_back(keys).sum()).backward()
    assert keys.grad is not None


def test_a_handed_out_tensor_is_known_by_identity_and_once():
    key_values = KeyValues("path", rotates_values=True)
    keys, other = states(8)
    key_values.hand_out(keys)
    assert key_values.were_handed_out(keys)
    assert not key_values.were_handed_out(keys)
    key_values.hand_out(keys)
    assert not key_values.were_handed_out(keys.clone())
    key_values.hand_out(other.clone())
    assert not key_values.were_handed_out(other)


def test_it_owns_a_center_and_can_be_copied():
    key_values = KeyValues("model.layers.0.self_attn", rotates_values=False)
    key_values.bits = 4
    assert list(key_values.state_dict()) == list(key_values.learned()) == ["center"]
    assert key_values.to(torch.bfloat16).center.dtype == torch.float32
    for twin in (copy.deepcopy(key_values), pickle.loads(pickle.dumps(key_values))):
        assert (twin.path, twin.bits, twin.rotates_values) == ("model.layers.0.self_attn", 4, False)
    assert "bits=4" in repr(key_values)


@torch.no_grad()
def test_what_keys_have_in_common_costs_nothing_once_it_is_known():
    generator = torch.Generator().manual_seed(0)
    offset = 20 * torch.randn(2, 1, 16, generator=generator)
    keys = torch.randn(3, 2, 40, 16, generator=generator) + offset
    values = torch.randn(3, 2, 40, 16, generator=generator)
    key_values = KeyValues("path", rotates_values=True, heads=2, size=16)
    key_values.bits = 4

    def error():
        # Rotated keys are compared with rotated keys: at 8 bits and without a center they are as good as exact.
        exact = key_values.restore(key_values.rotate(keys, values)[0])
        return float((key_values.quantize(keys, values)[0] - exact).norm())

    before = error()
    key_values.observe(keys)
    assert key_values.center.abs().sum() == 0, "nobody measures"
    with key_values.measuring_center():
        key_values.observe(keys[:1])
        key_values.observe(keys[1:])
    assert torch.allclose(key_values.center, keys.mean((0, 2)).unsqueeze(1), atol=1e-4)
    assert error() < 0.2 * before
    plain = KeyValues("path", rotates_values=True)
    rotated = key_values.restore(key_values.rotate(keys, values)[0])
    assert torch.allclose(rotated, plain.restore(plain.rotate(keys, values)[0]), atol=1e-4)
