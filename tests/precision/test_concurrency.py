"""One model at several bit-widths at the same time: in threads, in asyncio tasks, and while its default changes."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import pytest
import torch

import quept
from quept.generation import KeyValueCache, cache_arguments
from quept.precision import precision_of, rounded_to_nearest

BITS = (2, 3, 4, 5, 6, 7, 8, None)
THREADS, PASSES = 8, 6


@pytest.fixture(scope="module", params=["best", "weight-activation-best"])
def model(request, tiny_model, windows, tmp_path_factory):
    output = tmp_path_factory.mktemp("concurrent") / "artifact"
    recipe = quept.load_recipe(request.param).with_bits(range(2, 9))
    recipe = recipe.updated(
        reconstruction=recipe.reconstruction.updated(epochs=0),
        granularity=recipe.granularity.updated(group_size=16),
        adapter={"kind": "none"},
    )
    quept.calibrate(tiny_model("llama"), output, data=windows, recipe=recipe)
    return quept.load(output)


@torch.inference_mode()
def logits(model, windows):
    return model(input_ids=windows[:2]).logits.clone()


@pytest.fixture(scope="module")
def alone(model, windows):
    """The logits at each of the bit-widths, one after the other."""
    found = {}
    for bits in BITS:
        with quept.at_precision(model, bits):
            found[bits] = logits(model, windows)
    assert len({each.sum().item() for each in found.values()}) > 5
    return found


def test_threads_at_different_bits_give_exactly_what_each_gives_alone(model, windows, alone):
    together = threading.Barrier(THREADS)

    def run(first):
        wrong = []
        together.wait()
        for turn in range(PASSES):
            bits = BITS[(first + turn) % len(BITS)]
            with quept.at_precision(model, bits):
                if not torch.equal(logits(model, windows), alone[bits]):
                    wrong.append(bits)
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(run, range(THREADS))) == [[]] * THREADS
    assert set(precision_of(model).bits.values()) == {None}


def test_asyncio_tasks_run_at_their_own_bits(model, windows, alone):
    async def run(bits):
        with quept.at_precision(model, bits):
            for _ in range(3):
                await asyncio.sleep(0)  # others set theirs
                assert torch.equal(logits(model, windows), alone[bits])
                assert torch.equal(await asyncio.to_thread(logits, model, windows), alone[bits])

    async def all_of_them():
        await asyncio.gather(*(run(bits) for bits in BITS))

    asyncio.run(all_of_them())


def test_a_pass_ends_at_the_precision_that_it_began_with(model, windows, alone):
    """The default changes at every block of a pass; the pass does not."""
    others = cycle((2, 8, None, 4))
    hooks = [
        layer.register_forward_pre_hook(lambda *_: quept.set_precision(model, next(others)))
        for layer in model.model.layers
    ]
    try:
        for bits in BITS:
            quept.set_precision(model, bits)
            assert torch.equal(logits(model, windows), alone[bits])
    finally:
        for hook in hooks:
            hook.remove()
        quept.set_precision(model, None)


def test_while_another_thread_switches_every_pass_is_at_one_of_the_precisions(model, windows, alone):
    stop = threading.Event()

    def switch():
        for bits in cycle((2, 8)):
            quept.set_precision(model, bits)
            if stop.is_set():
                return

    quept.set_precision(model, 2)
    thread = threading.Thread(target=switch)
    thread.start()
    try:
        for _ in range(30):
            found = logits(model, windows)
            assert torch.equal(found, alone[2]) or torch.equal(found, alone[8])
    finally:
        stop.set()
        thread.join()
        quept.set_precision(model, None)


def test_a_scope_is_its_threads_alone_and_a_switch_within_it_ends_with_it(model):
    seen = {}
    with quept.at_precision(model, 4):
        thread = threading.Thread(target=lambda: seen.update(precision_of(model).bits))
        thread.start()
        thread.join()
        quept.set_precision(model, 2)
        assert set(precision_of(model).bits.values()) == {2, None}, "keys and values stay at full precision"
        with quept.at_precision(model, {"*.mlp.*": 8}):
            assert set(precision_of(model).bits.values()) == {2, 8, None}
    assert set(seen.values()) == {None}
    assert set(precision_of(model).bits.values()) == {None}


def test_the_baseline_runs_beside_the_calibrated_model(model, windows, alone):
    with rounded_to_nearest(model, 2):
        baseline = logits(model, windows)
    assert not torch.equal(baseline, alone[2])
    together = threading.Barrier(2)

    def rounded():
        together.wait()
        with rounded_to_nearest(model, 2):
            return [logits(model, windows) for _ in range(PASSES)]

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(rounded)
        together.wait()
        with quept.at_precision(model, 2):
            assert all(torch.equal(logits(model, windows), alone[2]) for _ in range(PASSES))
        assert all(torch.equal(each, baseline) for each in other.result())


def test_threads_generate_with_packed_caches_at_their_own_bits(model, windows):
    def generate(bits):
        with quept.at_precision(model, f"w{bits}kv{bits}"), torch.inference_mode():
            cache = KeyValueCache(model)
            return model.generate(
                windows[:1, :8],
                attention_mask=torch.ones(1, 8, dtype=torch.int64),
                max_new_tokens=12,
                do_sample=False,
                pad_token_id=0,
                **cache_arguments(cache),
            ).tolist()

    chosen = (2, 3, 4, 8)
    expected = [generate(bits) for bits in chosen]
    with ThreadPoolExecutor(len(chosen)) as pool:
        for _ in range(3):
            assert list(pool.map(generate, chosen)) == expected


def test_a_failed_pass_leaves_nothing_behind(model, windows, alone):
    with pytest.raises(IndexError):
        model(input_ids=windows[:1] + 10**6)
    quept.set_precision(model, 4)
    assert torch.equal(logits(model, windows), alone[4])
    quept.set_precision(model, None)
    assert torch.equal(logits(model, windows), alone[None])
