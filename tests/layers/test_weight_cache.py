"""Derived weights kept in memory: which stay, which go, and what threads and copies may do."""

import copy
import threading

import pytest
import torch

from quept.layers import WeightCache
from quept.layers.cache import Key

WIDTHS = range(2, 9)


def key(path, bits):
    return Key(path, bits, "dense")


def tensor_of(numbers):
    return torch.zeros(numbers)


def test_the_least_recently_used_weight_goes_first_and_the_budget_holds():
    kept, derived = WeightCache(budget=3 * 40), []

    def derive(bits):
        derived.append(bits)
        return tensor_of(10)

    for bits in (2, 3, 4, 2, 5):  # 2 is used again, so 3 is the oldest when 5 needs room
        kept.get(key("a", bits), derive)
        assert kept.resident == sum(kept.bytes_by_bits().values()) <= 120
    assert kept.bytes_by_bits() == {2: 40, 4: 40, 5: 40}
    kept.get(key("a", 2), derive)
    assert derived == [2, 3, 4, 5]
    kept.get(key("a", 3), derive)
    assert derived == [2, 3, 4, 5, 3]
    assert kept.bytes_by_bits() == {2: 40, 3: 40, 5: 40}


def test_a_large_weight_pushes_out_as_many_as_it_needs_but_none_if_it_never_fits():
    kept = WeightCache(budget=100)
    for path in "ab":
        kept.get(key(path, 2), lambda bits: tensor_of(10))
    kept.get(key("c", 8), lambda bits: tensor_of(26))
    assert kept.bytes_by_bits() == {2: 80}
    kept.get(key("c", 8), lambda bits: tensor_of(25))
    assert kept.bytes_by_bits() == {8: 100}
    assert kept.resident == 100


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_budget_counts_bytes_not_numbers(dtype):
    kept = WeightCache(budget=1000)
    kept.get(key("a", 2), lambda bits: torch.zeros(10, dtype=dtype))
    assert kept.resident == 10 * torch.zeros((), dtype=dtype).element_size()


def test_without_a_budget_every_weight_stays_and_a_budget_of_zero_keeps_none():
    unlimited, none = WeightCache(), WeightCache(budget=0)
    for bits in WIDTHS:
        unlimited.get(key("a", bits), lambda bits: tensor_of(10))
        assert none.get(key("a", bits), lambda bits: tensor_of(10)).numel() == 10
    assert list(unlimited.bytes_by_bits()) == list(WIDTHS)
    assert none.resident == 0


def test_forgetting_drops_the_weights_of_one_layer_only():
    kept = WeightCache()
    for path in ("a", "ab"):
        for bits in (2, 8):
            kept.get(key(path, bits), lambda bits: tensor_of(10))
    kept.forget("a")
    assert kept.resident == 80
    assert kept.get(key("ab", 2), pytest.fail).numel() == 10


def test_what_is_made_ahead_takes_the_place_of_what_is_idle_but_not_of_what_is_in_force():
    kept = WeightCache(budget=120)
    in_force = {key("a", 4), key("b", 4)}
    for path, bits in (("a", 4), ("b", 4), ("a", 8)):
        kept.get(key(path, bits), lambda bits: tensor_of(10))
    assert kept.prefetch(key("a", 2), lambda bits: tensor_of(10), in_force), "the idle one at 8 bits went"
    assert kept.bytes_by_bits() == {2: 40, 4: 80}
    assert not kept.prefetch(key("b", 2), lambda bits: tensor_of(20), in_force)
    assert all(kept.holds(each) for each in in_force)
    assert kept.prefetch(key("b", 4), pytest.fail, in_force), "it is resident already"


def test_a_copy_derives_its_own():
    kept = WeightCache(budget=100)
    kept.get(key("a", 2), lambda bits: tensor_of(10))
    other = copy.deepcopy({"one": kept, "two": kept})
    assert other["one"] is other["two"]
    assert other["one"].budget == 100
    assert other["one"].resident == 0


def test_threads_share_one_and_its_books_stay_right():
    kept, errors = WeightCache(budget=400), []

    def use(seed):
        generator = torch.Generator().manual_seed(seed)
        try:
            for bits in torch.randint(2, 9, (300,), generator=generator).tolist():
                weight = kept.get(key("abcd"[seed], bits), lambda bits: torch.full((5 * bits,), float(bits)))
                assert weight.tolist() == [bits] * (5 * bits)
                assert kept.resident <= 400
        except AssertionError as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert kept.resident == sum(kept.bytes_by_bits().values())
