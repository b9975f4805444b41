"""The rotation's kernel is the rotation."""

import pytest
import torch
from torch import library

from quept import ops
from quept.numerics.hadamard import Rotation, factors
from quept.ops import quantize_tokens, rotate
from quept.ops.cpu.rotation import steps_of

DTYPES = (torch.float32, torch.bfloat16)
# Powers of two below and above every vector; Paley's matrices alone, with few columns, with many, and two; parts.
SIZES = (1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 12, 24, 44, 84, 88, 97, 144, 172, 240, 300, 344, 704, 715, 960)
SIZES += (1536, 2304, 2816, 4096)

pytestmark = pytest.mark.skipif(not ops.paths(), reason="quept was installed without kernels")


@pytest.fixture(params=ops.paths())
def path(request):
    with ops.using(request.param):
        yield request.param


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
def test_every_path_gives_the_same_numbers_and_they_are_the_rotation(size):
    rotation, x = Rotation.of(size), values(5, size)
    for inverse in (False, True):
        exact = rotate(x.double(), rotation, inverse)
        found = []
        for path in ops.paths():
            with ops.using(path):
                found.append(rotate(x, rotation, inverse))
        assert all(torch.equal(found[0], other) for other in found[1:])
        assert float((found[0] - exact).abs().max()) <= 3e-6 * size**0.25


@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_is_rounded_once(path, size):
    rotation, x = Rotation.of(size), values(5, size).bfloat16()
    assert torch.equal(rotate(x, rotation), rotate(x.float(), rotation).bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_rotating_and_quantizing_at_once_is_the_same_as_in_turn(path, size, dtype):
    x = values(7, size).to(dtype)
    x[1] = 0
    x[2] *= 1e-30
    x[3, -1] = float("inf")
    for bits in (2, 5, 8):
        clip_ratio, rotation = torch.tensor(0.9), Rotation.of(size)
        at_once = quantize_tokens(x, clip_ratio, bits, rotation)
        in_turn = quantize_tokens(rotate(x, rotation), clip_ratio, bits)
        assert torch.equal(at_once.codes, in_turn.codes)
        torch.testing.assert_close(at_once.scale, in_turn.scale, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(at_once.sums, in_turn.sums)
        assert not bool(at_once.scale[3].isfinite())


def test_rows_may_lie_apart(path):
    x = values(3, 4, 200)
    rotation = Rotation.of(172)
    for view in (
        x[..., 5:177],
        x.flip(-1)[..., :172],
        x[:0, :, :172],
        x[1, 2, :172],
        x[..., ::1][:, :, 28:].transpose(0, 1),
    ):
        found = rotate(view, rotation)
        assert found.shape == view.shape
        torch.testing.assert_close(found, rotation(view.double()).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("magnitude", [1e-42, 1e-38, 1e30, 1e37])
def test_small_and_large_values_keep_their_length(path, magnitude):
    x = values(4, 2816).clamp(-3, 3) * magnitude
    rotated = rotate(x, Rotation.of(2816))
    expected = Rotation.of(2816)(x.double())
    assert float((rotated - expected).abs().max()) <= 1e-5 * magnitude + 2816 * 2**-149


def test_gradients_go_through_the_reference(path):
    x = values(3, 88).requires_grad_()
    rotation = Rotation.of(88)
    (gradient,) = torch.autograd.grad(rotate(x, rotation).square().sum(), x)
    torch.testing.assert_close(gradient, 2 * x.detach(), rtol=1e-4, atol=1e-5)


def test_a_factor_too_large_for_kernels_is_left_to_the_reference(path):
    order = next(order for order in range(516, 1000, 4) if factors(order) == (order,))
    rotation = Rotation((order,))
    assert steps_of(rotation) is None
    x = values(2, order)
    torch.testing.assert_close(rotate(x, rotation).double(), rotation(x.double()), rtol=1e-4, atol=1e-5)
    assert quantize_tokens(x, torch.tensor(0.9), 8, rotation).codes.shape == x.shape


def test_values_of_another_size_are_refused(path):
    for rotation in (Rotation.of(172), Rotation.of(88)):
        with pytest.raises(ValueError, match=f"of {rotation.size} channels, the values have 44"):
            rotate(torch.zeros(1, 44), rotation)
        with pytest.raises(ValueError, match="the values have 44"):
            quantize_tokens(torch.zeros(1, 44), torch.tensor(0.9), 8, rotation)


@pytest.mark.parametrize("rotation", [None, Rotation.of(88)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_compiler_is_given_an_operator(path, dtype, rotation):
    def run(x, clip_ratio):
        tokens = quantize_tokens(x * 2, clip_ratio, 8, rotation)
        return tokens.codes, tokens.scale, tokens.sums

    x, clip_ratio = values(2, 3, 88).to(dtype), torch.tensor(0.9)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(x, clip_ratio)
    assert all(torch.equal(one, other) for one, other in zip(compiled, run(x, clip_ratio), strict=True))
    arguments = x, clip_ratio, 8, [] if rotation is None else list(rotation.orders)
    library.opcheck(torch.ops.quept.quantize_tokens.default, arguments)
    library.opcheck(torch.ops.quept.rotate.default, (x, [88], False))
