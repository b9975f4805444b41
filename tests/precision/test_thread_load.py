"""A short run of `scripts/thread_load.py`, forks beside busy threads, and each race by itself."""

import copy
import importlib.util
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from families import build_tiny_model
from torch import nn

import quept
from quept.attention import install
from quept.config import PrecisionPlan
from quept.layers import WeightCache
from quept.layers.cache import Key
from quept.precision import elastic_linears, precision_of

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "scripts" / "thread_load.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("thread_load", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["thread_load"] = module  # where its dataclass looks for its own module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def subjects(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("thread_load")
    return {name: script.Subject.calibrated(name, folder) for name in ("weight-activation-best", "vision-best")}


@pytest.fixture
def model(subjects):
    return quept.load(subjects["weight-activation-best"].artifact)


@pytest.mark.parametrize(("recipe", "budget"), [("weight-activation-best", 1000), ("vision-best", 0)])
def test_every_result_under_load_is_that_of_a_thread_alone(script, subjects, recipe, budget):
    count = script.run(subjects[recipe], budget, threads=8, calls=6)
    assert sum(count.done.values()) > 8 * 6
    assert not count.wrong


def test_a_forked_child_can_do_all_that_its_parent_can(subjects):
    command = [sys.executable, HERE / "forked.py", subjects["weight-activation-best"].artifact]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout.splitlines() == [
        "before any prefetch: fine",
        "after a prefetch: fine",
        "with one pending: cancelled",
        "in a pool: fine",
        "in a data loader: fine",
        "beside busy threads: fine",
    ], ended.stderr


def test_threads_load_models_of_several_dtypes_at_once(subjects, windows, tmp_path):
    recipe = quept.load_recipe("best").adjusted(epochs=0)
    quept.calibrate(build_tiny_model("llama", torch.bfloat16), tmp_path / "half", data=windows, recipe=recipe)
    artifacts = {torch.float32: subjects["weight-activation-best"].artifact, torch.bfloat16: tmp_path / "half"}

    @torch.inference_mode()
    def found(dtype):
        model = quept.load(artifacts[dtype], 4)
        assert {each.dtype for each in elastic_linears(model).values()} == {dtype}
        assert not nn.Linear(1, 1).weight.is_meta
        return model(windows).logits

    expected = {dtype: found(dtype) for dtype in artifacts}

    def load(number):
        wanted = [torch.float32, torch.bfloat16][number % 2]
        return all(torch.equal(found(wanted), expected[wanted]) for _ in range(2))

    register = nn.Module.register_parameter
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(load, range(6)))
    assert nn.Module.register_parameter is register
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(("recipe", "epochs"), [("best", 1), ("vision-best", 0)])
def test_the_default_dtype_decides_on_nothing(recipe, epochs, tiny_model, tiny_classifier, windows, images, tmp_path):
    """Another thread may have changed it, while it loads a model."""
    vision = recipe == "vision-best"
    data = images if vision else windows[:4]

    def tensors(name, dtype):
        torch.set_default_dtype(dtype)
        try:
            model = tiny_classifier("vit") if vision else tiny_model("llama")
            quept.calibrate(model, tmp_path / name, data=data, recipe=recipe, epochs=epochs, batch_size=4)
            loaded = quept.load(tmp_path / name)
            with torch.inference_mode(), quept.at_precision(loaded, 4):
                return {**loaded.state_dict(), "logits": loaded(data[:2]).logits}
        finally:
            torch.set_default_dtype(torch.float32)

    expected, found = tensors("single", torch.float32), tensors("half", torch.bfloat16)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_a_switch_is_never_seen_in_part(model, monkeypatch):
    """Another thread asks while the first of all parts has changed: it gets what is in force once all have."""
    plans = {bits: PrecisionPlan.uniform(elastic_linears(model), bits) for bits in (2, 8)}
    quept.set_precision(model, 2)
    begun, seen = threading.Event(), []
    first = next(iter(elastic_linears(model).values()))
    change = type(first).set_default

    def slow(part, setting):
        change(part, setting)
        if part is first:
            begun.set()
            stop.wait(0.2)

    def ask():
        begun.wait()
        seen.append(precision_of(model).bits)
        with quept.at_precision(model, {"*.mlp.*": 5}):
            seen.append(precision_of(model).bits)

    stop = threading.Event()
    monkeypatch.setattr(type(first), "set_default", slow)
    thread = threading.Thread(target=ask)
    thread.start()
    quept.set_precision(model, plans[8])
    thread.join()
    assert set(seen[0].values()) == {8, None}, "keys and values stay at full precision"
    assert set(seen[1].values()) == {5, 8, None}


def test_a_pass_within_a_scope_ends_at_the_precision_that_it_began_with(model, windows):
    with torch.inference_mode(), quept.at_precision(model, 4):
        expected = model(windows).logits
        hook = model.model.layers[0].register_forward_pre_hook(lambda *_: quept.set_precision(model, 2))
        assert torch.equal(model(windows).logits, expected)
        hook.remove()
        assert set(precision_of(model).bits.values()) == {2, None}, "it holds from the next pass on"


def test_attention_is_installed_by_whichever_thread_comes_first(model):
    class Config:
        """A configuration that another thread changes as soon as it has been read."""

        reads = 0

        @property
        def _attn_implementation(self):
            self.reads += 1
            return "sdpa" if self.reads == 1 else "quept_sdpa"

        @_attn_implementation.setter
        def _attn_implementation(self, name):
            assert name == "quept_sdpa"

    install(Config())


def test_a_copy_made_during_a_pass_is_whole(model, windows):
    copies, mlp = [], model.model.layers[0].mlp

    def copied(*_):
        pickle.loads(pickle.dumps(mlp.up_proj))
        copies.append(copy.deepcopy(model))

    with torch.inference_mode(), quept.at_precision(model, 4):
        expected = model(windows).logits
        hook = mlp.gate_proj.register_forward_hook(copied)  # its input is kept for up_proj
        assert torch.equal(model(windows).logits, expected)
        hook.remove()
    copies[0].model.layers[0].mlp.gate_proj._forward_hooks.clear()
    with torch.inference_mode(), quept.at_precision(copies[0], 4):
        assert torch.equal(copies[0](windows).logits, expected)


def test_what_was_derived_from_parameters_that_have_changed_since_is_not_kept():
    cache, key = WeightCache(), Key("a", 4, "dense")

    def derive(bits):
        cache.forget("a")  # another thread changes the layer meanwhile
        return torch.zeros(bits)

    assert len(cache.get(key, derive)) == 4
    assert not cache.prefetch(key, derive, ())
    assert not cache.holds(key)
    assert cache.prefetch(key, torch.zeros, ())


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_lengths_of_other_threads_sequences_do_not_change_rotary_embeddings(kind, tiny_model, windows, tmp_path):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 16}
    model = tiny_model("llama", rope_parameters=rope, max_position_embeddings=64 if kind == "longrope" else 16)
    short, long = windows[:2, :20], windows.repeat(1, 2)[:2, :40]  # both longer than the original length
    with torch.inference_mode():
        expected = {20: copy.deepcopy(model)(short).logits, 40: copy.deepcopy(model)(long).logits}
    quept.calibrate(
        model, tmp_path / "artifact", data=windows[:2, :12], recipe=quept.load_recipe("paper").adjusted(epochs=0)
    )
    loaded = quept.load(tmp_path / "artifact", exact=True)

    def run(number):
        given = (short, long)[number % 2]
        with torch.inference_mode():
            found = loaded(given).logits
        return torch.equal(found, expected[given.shape[1]])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(run, range(24)))
    finally:
        sys.setswitchinterval(interval)
