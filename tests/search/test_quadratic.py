"""Choices whose errors depend on one another."""

from itertools import product

import numpy as np
import pytest

from quept.search.quadratic import PairedProblem

ITEMS, OPTIONS = 4, 3


def problem(seed):
    generator = np.random.default_rng(seed)
    costs = np.sort(generator.integers(1, 9, (ITEMS, OPTIONS)), axis=1)
    costs[0, 1] = -1  # an item that lacks an option
    pairs = generator.normal(0, 0.3, (ITEMS, OPTIONS, ITEMS, OPTIONS))
    pairs += pairs.transpose(2, 3, 0, 1)
    pairs[np.arange(ITEMS), :, np.arange(ITEMS), :] = 0
    return PairedProblem(costs, generator.random((ITEMS, OPTIONS)), pairs)


def by_hand(found, choice):
    """Every option's own error, and what each two add, both ways."""
    alone = sum(found.errors[item, option] for item, option in enumerate(choice))
    return alone + sum(found.pairs[a, choice[a], b, choice[b]] for a in range(ITEMS) for b in range(ITEMS) if a != b)


@pytest.mark.parametrize("seed", range(20))
def test_no_change_of_one_or_two_items_within_the_limit_is_better(seed):
    found = problem(seed)
    start = np.array([0] * ITEMS)
    limit = int(found.costs[np.arange(ITEMS), start].sum()) + 5
    choice = found.improved(start, limit)
    assert found.error(choice) == pytest.approx(by_hand(found, choice))
    assert found.error(choice) <= found.error(start)
    for other in product(range(OPTIONS), repeat=ITEMS):
        costs = found.costs[np.arange(ITEMS), other]
        if (costs >= 0).all() and costs.sum() <= limit and (np.array(other) != choice).sum() <= 2:
            assert by_hand(found, other) >= found.error(choice) - 1e-9
    assert (found.costs[np.arange(ITEMS), choice] >= 0).all()
    assert start.tolist() == [0] * ITEMS, "the start is left alone"
