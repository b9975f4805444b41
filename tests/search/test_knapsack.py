"""The dynamic programme against every choice there is."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quept.search import knapsack
from quept.search.knapsack import Choice, Infeasible, Option, choose

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
            assert choose(items, budget) == Choice(expected[2])


@settings(max_examples=200, deadline=None)
@given(ITEMS, st.integers(0, 40), st.sampled_from([1, 2, 3]))
def test_where_states_run_out_the_choice_fits_and_its_excess_holds(items, budget, most):
    expected = by_trying(items, budget)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "FIRST_PASS_STATES", 1)
        patch.setattr(knapsack, "MOST_STATES", most)
        if expected is not None:
            choice = choose(items, budget)
            chosen = [options[position] for options, position in zip(items, choice.positions, strict=True)]
            assert sum(option.cost for option in chosen) <= budget
            excess = sum(option.error for option in chosen) - expected[0]
            assert 0 <= excess <= choice.excess + 1e-6
            if choice.excess == 0:
                assert excess == 0


def test_layers_that_all_gain_the_same_per_bit_are_chosen_in_bounded_time_and_it_is_said():
    generator = np.random.default_rng(0)
    items = [[Option(option.cost, -option.cost) for option in options] for options in layers(60, seed=2)]
    budget = sum(option.cost for options in items for option in options[3:4]) - int(generator.integers(1, 10**6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "MOST_STATES", 1 << 8)
        choice = choose(items, budget)
    unused = budget - sum(options[position].cost for options, position in zip(items, choice.positions, strict=True))
    # The error is the cost here: what of the budget stays unused is what the choice can be above the least.
    assert 0 < unused <= choice.excess < 1e-5 * budget


def test_one_step_of_improving_moves_two_items_at_once():
    # 0 goes up only if 1 comes down.
    items = [[Option(0, 4.0), Option(4, 0.0)], [Option(1, 3.0), Option(4, 2.0)]]
    problem, _ = knapsack._Problem.of(items, 5)
    assert problem.improved((0, 1)) == (1, 0)


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
    choice = choose(items, budget)
    assert choice == choose(items, budget)
    assert choice.excess == 0
    chosen = choice.positions
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
    best = tuple(min(range(7), key=lambda place: options[place].error) for options in items)
    assert choose(items, 10**15) == Choice(best)
    with pytest.raises(Infeasible, match="below the smallest that is possible"):
        choose(items, 10)
    assert choose([], 0) == Choice(())
