"""Which kernels run, and what is said where none do."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from quept import ops
from quept.errors import InvalidInput
from quept.ops import quantize_tokens
from quept.ops.cpu import extension


def described(**environment):
    run = subprocess.run(
        [sys.executable, "-m", "quept.ops"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return run.stdout + run.stderr


@pytest.fixture
def missing(monkeypatch):
    def load():
        return None, "quept was installed without them"

    monkeypatch.setattr(extension, "_load", load)
    extension._warn.cache_clear()
    yield
    extension._warn.cache_clear()


def test_without_kernels_it_runs_and_says_once_what_to_do(missing):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            codes = quantize_tokens(torch.ones(2, 8), torch.tensor(1.0), 8).codes
    assert codes.tolist() == [[255] * 8] * 2
    (warning,) = caught
    assert "apt install g++" in str(warning.message)
    assert "QUEPT_NATIVE=0" in str(warning.message)
    assert "apt install g++" in ops.describe()
    assert ops.paths() == ()
    with pytest.raises(InvalidInput, match="installed without them"), ops.using("portable"):
        pass


def test_the_environment_turns_them_off_without_a_warning():
    told = described(QUEPT_NATIVE="0").splitlines()
    assert told[0] == "PyTorch's operations, not quept's kernels: QUEPT_NATIVE=0 turned them off."
    (row,) = [line for line in told if line.startswith("rotate ")]
    assert row.split()[:4] == ["rotate", "cpu", "cpu", "reference"]
    assert row.endswith("cpu: QUEPT_NATIVE=0 turned them off")


@pytest.mark.skipif(not ops.paths(), reason="quept was installed without kernels")
def test_the_environment_chooses_a_path():
    assert "quept's kernels, portable of " in described(QUEPT_NATIVE="portable")
    assert f"quept's kernels, {ops.paths()[0]} of " in described(QUEPT_NATIVE="")
    assert "QUEPT_NATIVE is 'avx1024'; this processor has" in described(QUEPT_NATIVE="avx1024")


@pytest.mark.skipif(not ops.paths(), reason="quept was installed without kernels")
@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's threads are borrowed on Linux")
def test_pytorch_s_threads_are_used():
    assert extension.native().has_threads()


def test_a_choice_ends_with_its_block():
    before = ops.describe()
    with ops.using(None):
        assert not ops.available()
    with pytest.raises(ValueError, match="2 to 8 bits"), ops.using(None):
        quantize_tokens(torch.ones(1, 1), torch.tensor(1.0), 9)
    assert ops.describe() == before
    assert ops.available() == bool(ops.paths())
