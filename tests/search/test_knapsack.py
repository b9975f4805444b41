"""The dynamic programme against every choice there is."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quept.search import knapsack
from quept.search.knapsack import Infeasible, Option, choose

ERRORS = st.one_of(st.integers(-6, 9).map(float), st.integers(-40, 40).map(lambda n: n / 8))
ITEMS = st.lists(st.lists(st.builds(Option, st.integers(0, 9), ERRORS), min_size=1, max_size=4), min_size=1, max_size=5)


def by_trying(items, budget):
    """The least (error, cost, positions) of all choices; errors are short binary numbers here, so sums are exact."""
    best = None
    for positions in product(*(range(len(options)) for options in items)):
        chosen = [options[position] for options, position in zip(items, positions, strict=True)]
        cost, error = sum(option.cost for option in chosen), sum(option.error for option in chosen)
        if cost <= budget and (best is None or (error, cost, positions) < best):
            best = (error, cost, positions)
    return best


@settings(max_examples=400, deadline=None)
@given(ITEMS, st.integers(0, 40), st.sampled_from([1, 2, 256]))
def test_it_equals_trying_all_choices_ties_included(items, budget, first_pass):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "FIRST_PASS_STATES", first_pass)  # also where the first pass leaves much out
        expected = by_trying(items, budget)
        if expected is None:
            with pytest.raises(Infeasible) as caught:
                choose(items, budget)
            assert caught.value.least == sum(min(option.cost for option in options) for options in items)
        else:
            assert choose(items, budget) == expected[2]


def layers(count, seed):
    """Linears as large models have them, at 2 to 8 bits with scales: cost in bits, error falling fourfold a bit."""
    generator = np.random.default_rng(seed)
    shapes = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    items = []
    for index in range(count):
        rows, columns = shapes[index % len(shapes)]
        importance = np.exp(generator.normal(0, 2))
        options = []
        for bits in range(2, 9):
            scales = rows * (columns // 128) if bits < 5 else rows
            error = importance * 4.0**-bits * np.exp(generator.normal(0, 0.1))
            options.append(Option((rows * columns + scales) * bits + scales * 16, float(error)))
        items.append(options)
    return items


def test_three_hundred_layers_are_solved_and_no_swap_is_better():
    items = layers(300, seed=3)
    cheapest, dearest = (sum(end(option.cost for option in options) for options in items) for end in (min, max))
    budget = cheapest + (dearest - cheapest) * 2 // 5
    chosen = choose(items, budget)
    assert chosen == choose(items, budget)
    room = budget - sum(options[position].cost for options, position in zip(items, chosen, strict=True))
    assert room >= 0
    costs = np.array([[option.cost for option in options] for options in items])
    errors = np.array([[option.error for option in options] for options in items])
    places = np.arange(len(items))
    spent, gained = costs - costs[places, chosen][:, None], errors - errors[places, chosen][:, None]
    both = np.where(
        (spent[:, :, None, None] + spent <= room) & (places[:, None] != places)[:, None, :, None],
        gained[:, :, None, None] + gained,
        0,
    )
    assert both.min() >= -1e-15


def test_a_budget_for_everything_takes_the_least_errors_and_none_refuses():
    items = layers(20, seed=1)
    assert choose(items, 10**15) == tuple(min(range(7), key=lambda place: options[place].error) for options in items)
    with pytest.raises(Infeasible, match="below the smallest that is possible"):
        choose(items, 10)
    assert choose([], 0) == ()
