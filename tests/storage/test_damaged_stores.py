"""A hundred of the damaged stores of `scripts/fuzz_store.py`, which tries as many as one wants."""

import importlib.util
from pathlib import Path

import pytest
import torch

import quept

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz_store.py"


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_store", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def store(fuzz, tmp_path_factory):
    directory = tmp_path_factory.mktemp("fuzz") / "store"
    fuzz.make_store(directory)
    return directory


@pytest.mark.filterwarnings("ignore")
def test_damaged_stores_are_refused_or_load_as_what_they_were(fuzz, store, tmp_path):
    original, seen = fuzz.truth(quept.load(store)), set()
    for number in range(100):
        done, forged = fuzz.damaged(store, tmp_path / "damaged", number, seed=1)
        with torch.inference_mode():
            allowed, what = fuzz.outcome(tmp_path / "damaged", original, forged)
        assert allowed, f"{number}: {done}: {what}"
        seen.add(what.partition(":")[0])
    assert seen == {"refused", "harmless", "forged"}


@pytest.mark.filterwarnings("ignore")
def test_the_script_notices_a_store_that_loads_as_something_else(fuzz, store):
    original = fuzz.truth(quept.load(store))
    name = next(name for name in original if name.endswith("/3"))
    other = {**original, name: original[name] ^ 1}
    assert fuzz.outcome(store, other, forged=False) == (False, "loaded as something else")
    assert fuzz.outcome(store, original, forged=False) == (True, "harmless")
