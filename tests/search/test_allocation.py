"""Plans within budgets: what is counted, what is kept to, and what cannot be."""

from itertools import product

import numpy as np
import pytest
import torch

from quept.config import PrecisionPlan
from quept.errors import InvalidInput
from quept.layers.size import packed_bytes
from quept.precision import at_precision, elastic_linears, set_precision
from quept.search import knapsack
from quept.search.allocation import Problem
from quept.search.budget import front, refined, smallest
from quept.search.constraints import Constraints
from quept.search.cost import Budget, Costs
from quept.search.expansion import Expansion, expand
from quept.search.sensitivity import divergence_of, measure
from quept.search.table import Origin, SensitivityTable
from quept.search.target import search_target

STORED = torch.bfloat16
ORIGIN = Origin(metric="kl", model="a" * 64, data="text", data_sha256="b" * 64, rows=72)


@pytest.fixture(scope="module")
def measured(elastic):
    """A model, what it is measured on, and its table with pairs."""
    model = elastic()
    inputs = torch.randint(96, (6, 12), generator=torch.Generator().manual_seed(5))
    target = search_target(model, inputs)
    table = SensitivityTable(origin=ORIGIN, parts=measure(target, keys_values=(4,)))
    return model, target, table.with_pairs(expand(target))


@pytest.fixture(scope="module")
def costs(measured):
    return Costs.of(measured[0], STORED)


def together(model):
    from quept.models import architecture_of

    return architecture_of(model.config.model_type).shared_input_groups(model)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_uniform_plan_takes_what_is_told_of_its_bit_width_everywhere_else(measured, costs, bits):
    model, _, table = measured
    problem = Problem(table, costs)
    allocation = problem.allocation(PrecisionPlan.uniform(elastic_linears(model), bits))
    assert allocation.bytes == packed_bytes(model, bits, STORED)
    assert allocation.mean_bits == bits
    assert allocation.average_bits > bits, "scales and zero points count"
    assert problem.solve(Budget(max_bytes=allocation.bytes)).bytes <= allocation.bytes
    assert problem.solve(Budget(average_bits=allocation.average_bits)).average_bits <= allocation.average_bits


def test_the_plan_is_the_best_of_all_that_keep_the_budget(measured, costs):
    _, _, table = measured
    loose = [path for path in costs.bits if "layers.1" in path][:4]
    fixed = {path: 4 for path in costs.bits if path not in loose}
    problem = Problem(table, costs, Constraints(fixed=fixed), pairs=False)
    budget = Budget(average_bits=4.6)
    found = problem.solve(budget)
    every = []
    for widths in product((2, 4, 8), repeat=len(loose)):
        plan = {**fixed, **dict(zip(loose, widths, strict=True))}
        if sum(costs.bits[path][bits] for path, bits in plan.items()) <= problem.limit(budget):
            every.append(sum(table.parts[path][str(bits)] for path, bits in plan.items()))
    assert len(every) > 10
    assert found.expected == pytest.approx(min(every))
    assert found.expected == pytest.approx(sum(table.parts[path][str(bits)] for path, bits in found.plan.bits.items()))


def test_where_plans_could_not_be_told_apart_it_is_said(measured, costs, monkeypatch):
    alike = {
        path: {str(bits): 1 - cost * 1e-6 for bits, cost in each.items() if bits < 16}
        for path, each in costs.bits.items()
    }
    table = measured[2].updated(parts={path: alike[path] for path in costs.bits}, pairs=())
    problem, budget = Problem(table, costs), Budget(average_bits=4.6)
    exact = problem.solve(budget)
    monkeypatch.setattr(knapsack, "FIRST_PASS_STATES", 1)
    monkeypatch.setattr(knapsack, "MOST_STATES", 1)
    found = problem.solve(budget)
    assert exact.excess == 0 < found.excess
    assert exact.expected <= found.expected <= exact.expected + found.excess
    assert problem.cost(found.plan) <= problem.limit(budget)


def test_pairs_lower_what_is_expected_and_are_counted_right(measured, costs):
    model, _, table = measured
    for groups in ((), together(model)):
        paired = Problem(table, costs, Constraints(together=groups))
        plain = Problem(table, costs, Constraints(together=groups), pairs=False)
        budget = Budget(average_bits=4.0)
        found = paired.solve(budget)
        assert found.expected <= paired.allocation(plain.solve(budget).plan).expected
        places = [table.columns.index((path, str(bits))) for path, bits in found.plan.bits.items()]
        products = table.products()[places][:, places].sum()
        alone = sum(table.parts[path][str(bits)] for path, bits in found.plan.bits.items())
        assert found.expected == pytest.approx(alone + products)


def test_what_reads_the_same_tensor_agrees_and_fixed_linears_keep_their_bit_width(measured, costs):
    model, _, table = measured
    groups = together(model)
    assert ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj") in groups
    fixed = {"model.layers.0.*": 8, "*.0.mlp.down_proj": 16, "model.layers.2.self_attn.q_proj": 2}
    for pairs in (False, True):
        problem = Problem(table, costs, Constraints((2, 4), fixed, groups), pairs=pairs)
        plan = problem.solve(Budget(average_bits=6.0)).plan.bits
        assert all(len({plan[path] for path in group}) == 1 for group in groups)
        assert {plan[path] for path in plan if "layers.0" in path} == {8, None}
        assert plan["model.layers.0.mlp.down_proj"] is None
        assert plan["model.layers.2.self_attn.v_proj"] == 2, "with the query, which is fixed"
        assert {plan[path] for path in plan if "layers.1" in path} <= {2, 4}


def test_layers_can_be_counted_alike(measured, costs):
    _, _, table = measured
    problem = Problem(table, costs, count="layers")
    found = problem.solve(Budget(average_bits=3.0, count="layers"))
    assert found.mean_bits <= 3.0 < found.mean_bits + 2 / len(costs.weights)
    assert found.average_bits != pytest.approx(found.mean_bits)


@pytest.mark.parametrize(
    ("constraints", "budget", "count", "told"),
    [
        (
            Constraints(),
            Budget(average_bits=2.0),
            "bytes",
            "is too small: the smallest that the allowed bit-widths can reach",
        ),
        (Constraints((4, 8)), Budget(average_bits=3.5, count="layers"), "layers", "can reach is 4."),
        (Constraints(), Budget(max_bytes=10), "bytes", "are not quantized"),
        (Constraints((3,)), Budget(average_bits=4), "bytes", r"3 bits are not in the calibrated set \[2, 4, 8\]"),
        (Constraints(fixed={"*.q_proj": 5}), Budget(average_bits=4), "bytes", "5 bits are not in the calibrated set"),
        (Constraints(fixed={"layers.9.*": 4}), Budget(average_bits=4), "bytes", "There is no linear 'layers.9"),
        (Constraints(()), Budget(average_bits=4), "bytes", "No bit-width is allowed"),
    ],
)
def test_what_cannot_be_is_told(measured, costs, constraints, budget, count, told):
    with pytest.raises(InvalidInput, match=told):
        Problem(measured[2], costs, constraints, count).solve(budget)


def test_the_smallest_budget_that_is_named_is_possible(measured, costs):
    problem = Problem(measured[2], costs, Constraints((2, 4)))
    with pytest.raises(InvalidInput) as caught:
        problem.solve(Budget(average_bits=1.5))
    smallest_bits = float(str(caught.value).split("reach is ")[1].split(",")[0])
    assert problem.solve(Budget(average_bits=smallest_bits)).mean_bits == 2
    with pytest.raises(InvalidInput):
        problem.solve(Budget(average_bits=smallest_bits - 0.001))


def test_linears_that_must_agree_cannot_be_fixed_apart(measured, costs):
    model, _, table = measured
    fixed = {"*.q_proj": 4, "*.k_proj": 8}
    with pytest.raises(InvalidInput, match=r"fixed at 4 and 8 bits but must have the same; .*--free"):
        Problem(table, costs, Constraints(fixed=fixed, together=together(model)))
    assert Problem(table, costs, Constraints(fixed=fixed)).solve(Budget(average_bits=6))


@pytest.mark.parametrize(
    "wrong", [{}, {"average_bits": 3.0, "max_bytes": 5}, {"average_bits": 0}, {"average_bits": 17}]
)
def test_a_budget_is_one_thing(wrong):
    with pytest.raises(InvalidInput):
        Budget(**wrong)
    with pytest.raises(InvalidInput, match="layers can be counted in an average of bits only"):
        Budget(max_bytes=100, count="layers")


def test_a_table_that_lacks_a_linear_or_bit_width_is_told(measured, costs):
    table = measured[2]
    first = next(iter(table.parts))
    less = table.updated(parts={path: errors for path, errors in table.parts.items() if path != first}, pairs=())
    with pytest.raises(InvalidInput, match=f"lacks the linear {first}"):
        Problem(less, costs)
    thin = table.updated(parts={**table.parts, first: {"8": 0.1}}, pairs=())
    with pytest.raises(InvalidInput, match=f"lacks 2 bits of {first}"):
        Problem(thin, costs)


def test_bisection_finds_the_smallest_plan_that_will_do(measured, costs):
    model, target, table = measured
    problem = Problem(table, costs, Constraints(together=together(model)))
    most = divergence_of(target, 4)
    tried = smallest(problem, lambda plan: divergence_of(target, plan), most)
    answer = tried[-1]
    assert answer.value <= most
    assert answer.allocation.average_bits < 8
    smaller = [each for each in tried if each.allocation.average_bits < answer.allocation.average_bits]
    assert smaller
    assert all(each.value > most for each in smaller)
    assert min(answer.allocation.average_bits - each.allocation.average_bits for each in smaller) < 1
    with pytest.raises(InvalidInput, match="No plan reaches 1e-12: the best that the allowed bit-widths give measures"):
        smallest(problem, lambda plan: divergence_of(target, plan), 1e-12)
    assert len(smallest(problem, lambda plan: divergence_of(target, plan), 1e9)) == 2


def test_refining_keeps_the_budget_and_never_ends_above_its_start(measured, costs):
    model, target, table = measured
    problem = Problem(table, costs, Constraints(together=together(model)))
    limit = problem.limit(Budget(average_bits=4.5))
    tried = refined(target, problem, limit, 3)
    assert tried[-1].value == min(each.value for each in tried)
    assert all(problem.cost(each.allocation.plan) <= limit for each in tried)
    assert tried[-1].value == pytest.approx(divergence_of(target, tried[-1].allocation.plan))


def test_refining_tries_the_uniform_plan_and_its_last_linears_wider(measured, costs):
    model, target, table = measured
    problem = Problem(table, costs, Constraints(together=together(model)))
    limit = problem.limit(Budget(average_bits=3.5))
    (uniform,), (wider,) = problem.uniform(limit), problem.last_wider(limit)
    assert set(uniform.plan.bits.values()) == {2}
    assert problem.cost(wider.plan) <= limit
    order = [wider.plan.bits[paths[0]] for paths in together(model)]
    assert order == sorted(order)
    assert set(order) == {2, 4}
    first_wider = together(model)[order.index(4) - 1]
    spare = limit - problem.cost(wider.plan)
    assert sum(costs.bits[path][4] - costs.bits[path][2] for path in first_wider) > spare, "as many as fit"
    tried = [each.allocation.plan for each in refined(target, problem, limit, 0)]
    assert all(plan in tried for plan in (uniform.plan, wider.plan, problem.within(limit).plan))
    assert problem.last_wider(problem.most) == []


def test_refining_tries_the_next_uniform_plan_less_what_it_can_best_do_without(measured, costs):
    model, target, table = measured
    problem = Problem(table, costs, Constraints(together=together(model)))
    limit = problem.limit(Budget(average_bits=3.5))
    (above,) = problem.uniform_above(limit)
    assert set(above.plan.bits.values()) == {4}
    assert problem.cost(above.plan) > limit
    reduced = problem.reduced(expand(target, above.plan), limit)
    assert problem.cost(reduced.plan) <= limit
    assert 4 in reduced.plan.bits.values()
    assert reduced.plan in [each.allocation.plan for each in refined(target, problem, limit, 0)]
    assert problem.uniform_above(problem.most) == []


def test_a_reduced_plan_gives_up_what_costs_least(measured, costs):
    model, _, table = measured
    problem = Problem(table, costs, Constraints(allowed=(2, 4), together=together(model)))
    columns = tuple(table.columns)
    cheap = set(together(model)[2])
    slopes = np.array([0.0 if width == "4" else 0.1 if path in cheap else 1.0 for path, width in columns])
    expansion = Expansion(columns, 0.0, slopes, np.zeros((len(columns), len(columns))))
    (above,) = problem.uniform_plans()[1:]
    plan = problem.reduced(expansion, problem.cost(above.plan) - 1).plan
    assert {path for path, bits in plan.bits.items() if bits == 2} == cheap


def test_an_expansion_proposes_plans_ever_further_from_its_own(measured, costs):
    model, _, table = measured
    problem = Problem(table, costs, Constraints(together=together(model)))
    start, limit = problem.uniform_plans()[0].plan, problem.limit(Budget(average_bits=6.0))
    columns = tuple(table.columns)
    slopes = np.array([-float(width) for _, width in columns])
    expansion = Expansion(columns, 1.0, slopes, np.zeros((len(columns), len(columns))))
    found = [each.plan for each in problem.improved(start, expansion, limit)]
    changed = [sum(plan.bits[paths[0]] != 2 for paths in together(model)) for plan in found]
    assert changed[:2] == [1, 2]
    assert changed == sorted(changed)
    assert len(changed) > 3
    assert all(problem.cost(plan) <= limit for plan in found)
    assert problem.improved(start, expansion, problem.least) == [], "there is no room for any"


def test_the_front_measures_each_plan_once(measured, costs):
    _, _, table = measured
    problem = Problem(table, costs, pairs=False)
    seen = []
    limits = [problem.least, problem.least, problem.least + 1, problem.most]
    points = front(problem, lambda plan: seen.append(plan) or float(len(seen)), limits)
    assert len(seen) == len(points) == 2
    assert [set(plan.bits.values()) for plan in seen] == [{2}, {8}]


def test_uniform_mixed_uniform_restores_every_bit(measured, costs):
    model, target, table = measured
    plan = Problem(table, costs).solve(Budget(average_bits=7.0)).plan
    with torch.no_grad(), at_precision(model, 4):
        before = target.logits(target.inputs[0])
        set_precision(model, plan)
        mixed = target.logits(target.inputs[0])
        set_precision(model, 4)
        after = target.logits(target.inputs[0])
    assert torch.equal(before, after)
    assert not torch.equal(before, mixed)
