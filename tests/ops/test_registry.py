"""A kernel is chosen in one place, gives what the reference gives, and another backend can join from outside."""

import json
from dataclasses import astuple, is_dataclass
from types import SimpleNamespace

import pytest
import torch

from quept import ops
from quept.errors import InvalidInput
from quept.formats import packing
from quept.formats.packed import PackedWeight
from quept.formats.stored import StoredWeight
from quept.numerics.hadamard import Rotation
from quept.ops.__main__ import main
from quept.ops.reference import OPERATORS
from quept.ops.reference.tiles import tile_product
from quept.ops.registry import BACKENDS, Backend, operator

CPU = torch.device("cpu")


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(low, high, *shape, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def packed_weight():
    return PackedWeight.of(whole(0, 16, 9, 300).to(torch.uint8), drawn(9, 3).abs() + 0.1, whole(0, 16, 9, 3), 4, 128)


def stored_weight():
    return StoredWeight(
        whole(-127, 128, 9, 300).to(torch.int8),
        drawn(9, 3).abs().bfloat16(),
        128,
        clip_ratios=whole(0, 256, 2, 9, 5).to(torch.uint8),
        mask=packing.pack(whole(0, 2, 9, 300).to(torch.uint8), 1),
    )


def integer_operands():
    return whole(0, 256, 9, 64).to(torch.uint8), drawn(9).abs() + 0.1, whole(0, 256, 9)


def finish_arguments():
    return drawn(3, 9), drawn(3, 1), drawn(3, 1), drawn(1, 9), drawn(9), torch.float32


def product_arguments():
    return whole(0, 256, 3, 64).to(torch.uint8), ops.integer_weight(*integer_operands(), CPU), torch.float32


# Arguments that every kernel of an operator has to take on a CPU, and how far a result may be from the reference's.
SAMPLES = {
    "rotate": (lambda: (drawn(3, 172), Rotation.of(172), True), 1e-5),
    "quantize_tokens": (lambda: (drawn(3, 172).bfloat16(), torch.tensor(0.9), 4), 0),
    "finish_product": (finish_arguments, 1e-6),
    "packed_linear": (lambda: (drawn(100, 300), packed_weight(), drawn(9)), 1e-5),
    "dequantize": (lambda: (packed_weight(), torch.bfloat16, slice(2, 7)), 0),
    "rebuild": (lambda: (stored_weight(), 3, 64, False), 0),
    "integer_product": (product_arguments, 0),
    "integer_weight": (lambda: (*integer_operands(), CPU), 0),
}

KERNELS = [
    pytest.param(each, kernel, path, id="-".join(filter(None, (each.name, kernel.backend.name, path))))
    for each in OPERATORS
    for kernel in each.kernels
    if not kernel.backend.absence("cpu")
    for path in kernel.backend.paths() or (kernel.backend.name,)
]


def tensors(result):
    """All tensors of a result, in order."""
    if isinstance(result, PackedWeight):
        return [result.codes, result.scale, result.row_scale, result.zero_point]
    if is_dataclass(result):
        return [result.codes, result.scale, result.sums] if hasattr(result, "sums") else list(astuple(result))
    return [result]


def comparable(each, result):
    """A weight packed for some product, as its product with fixed codes."""
    if each is not ops.integer_weight:
        return result
    assert result.layout != "reference"
    return ops.integer_product(torch.eye(64).mul(100).to(torch.uint8), result, torch.float32)


@pytest.mark.parametrize(("each", "kernel", "path"), KERNELS)
def test_a_kernel_gives_what_the_reference_gives(each, kernel, path):
    arguments, tolerance = SAMPLES[each.name]
    with ops.using(path):
        found = kernel.run(*arguments())
        assert found is not NotImplemented
        found = comparable(each, found)
    with ops.using(None):
        expected = each(*arguments())
        if each is ops.integer_weight:
            expected = ops.integer_product(torch.eye(64).mul(100).to(torch.uint8), expected, torch.float32)
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("path", ops.paths())
def test_few_tokens_are_multiplied_as_specified(path):
    x, weight, bias = drawn(3, 300), packed_weight(), drawn(9)
    with ops.using(path):
        assert torch.equal(ops.packed_linear(x, weight, bias), tile_product(x, weight, bias))


class Fake(Backend):
    """A backend as somebody else would write it; `why` says that it cannot run."""

    why = ""

    def absence(self, device):
        return self.why


@pytest.fixture
def fake(monkeypatch):
    """A third backend, registered for `dequantize` in front of the others, that takes bfloat16 alone."""
    monkeypatch.setattr(ops.dequantize, "kernels", list(ops.dequantize.kernels))
    backend, calls = Fake("fake"), []

    def dequantize(weight, dtype, rows=None):
        calls.append(dtype)
        return torch.full(weight.shape, 4, dtype=dtype) if dtype == torch.bfloat16 else NotImplemented

    ops.register_kernel(ops.dequantize, backend, dequantize, first=True)
    yield SimpleNamespace(backend=backend, calls=calls)
    del BACKENDS["fake"]


def test_another_backend_is_chosen_for_what_it_takes_and_passed_over_for_the_rest(fake):
    weight = packed_weight()
    assert bool((ops.dequantize(weight, torch.bfloat16) == 4).all())
    assert torch.equal(ops.dequantize(weight, torch.float32), weight.dequantize(torch.float32))
    assert fake.calls == [torch.bfloat16, torch.float32]
    with ops.using("fake"):  # operators that are made of others use it too
        assert bool((ops.packed_linear(torch.ones(2, 300).bfloat16(), weight) == 4 * 300).all())


def test_only_the_backends_in_use_are_tried(fake):
    weight = packed_weight()
    with ops.using(None):
        assert torch.equal(ops.dequantize(weight, torch.bfloat16), weight.dequantize(torch.bfloat16))
        assert not ops.available()
    assert fake.calls == []
    with ops.using("fake"):
        assert bool((ops.dequantize(weight, torch.bfloat16) == 4).all())
        assert not ops.available()
        assert ops.dequantize.backend_on("cpu") is fake.backend
    assert ops.available() == bool(ops.paths())


@pytest.mark.usefixtures("fake")
def test_another_backend_is_in_the_report(capsys):
    main([])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("dequantize ")]
    assert row.split()[:5] == ["dequantize", "cpu", "fake,", "cpu", "fake"]
    main(["--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["kernels"] == ops.describe()
    (choice,) = [each for each in told["operators"] if (each["operator"], each["device"]) == ("dequantize", "cpu")]
    assert choice["runs"] == "fake"
    assert choice["backends"] == ["fake", "cpu"]
    assert list(choice["others"]) == ["cpu"]
    assert {each["operator"] for each in told["operators"]} == {each.name for each in OPERATORS}


def test_what_is_absent_or_off_says_so_in_the_report(fake, capsys):
    fake.backend.why = "there is no GPU"
    with ops.using("int_mm"):
        main([])
        (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("dequantize ")]
        assert "fake: it is turned off; cpu: it is turned off" in row
        assert row.split()[4] == "reference"
    main([])
    assert "fake: there is no GPU" in capsys.readouterr().out
    with pytest.raises(InvalidInput, match=r"fake does not run here \(there is no GPU\)"), ops.using("fake"):
        pass


def test_wrong_registrations_and_names_are_refused(fake):
    with pytest.raises(ValueError, match="has a kernel for 'dequantize' already"):
        ops.register_kernel(ops.dequantize, fake.backend, ops.dequantize.reference)
    with pytest.raises(ValueError, match="another backend named 'fake'"):
        ops.register_kernel(ops.rebuild, Backend("fake"), ops.rebuild.reference)
    with pytest.raises(InvalidInput, match=r"named 'avx1024'\. Choose among .*int_mm"), ops.using("avx1024"):
        pass


def test_a_compiler_sees_traceable_kernels_and_no_others():
    @operator
    def double(x):
        return x * 2

    class Opaque(Backend):
        pass

    backends = [Opaque("opaque"), Opaque("open")]
    try:
        ops.register_kernel(double, backends[0], lambda x: torch.full_like(x, float(x.sum().item())))
        ops.register_kernel(double, backends[1], lambda x: x * 3, traceable=True)
        x = torch.ones(2)
        assert torch.equal(double(x), torch.full((2,), 2.0))
        assert torch.equal(torch.compile(lambda x: double(x), fullgraph=True, backend="eager")(x), x * 3)
    finally:
        for backend in backends:
            del BACKENDS[backend.name]


def test_an_integer_linear_can_be_compiled():
    weight = ops.integer_weight(*integer_operands(), CPU)
    x, bias = drawn(5, 64), drawn(9)

    def run(x):
        return ops.integer_linear(ops.quantize_tokens(x, torch.tensor(0.9), 8), weight, bias)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, run(x), rtol=1e-5, atol=1e-3)
