"""A weight while it is calibrated: what its methods learn, where gradients go, and what freezing keeps."""

import pytest
import torch
from naive import clamp

from quept.calibration.methods import AdaRound, Clipping, LearnedRounding, LowRank, Start
from quept.calibration.methods.clipping import UNCLIPPED
from quept.calibration.trainable import TrainableWeight
from quept.config import Adapter, BitGroups, Granularity, Reconstruction, WeightSpec
from quept.layers.weight import FrozenWeight

BITS = range(2, 9)
OUT, IN, RANK, GROUP_SIZE = 6, 20, 2, 8  # twenty inputs are no multiple of eight
CPU = torch.device("cpu")


def spec_for(entry="weight", kind="cascade", **changes):
    return WeightSpec(
        groups=BitGroups.partition(BITS),
        granularity=Granularity(group_size=GROUP_SIZE, grouped_bits=(2, 3)),
        adapter=Adapter(kind=kind, entry=entry, rank=RANK),
        **changes,
    )


def trainable(entry="weight", kind="cascade", *, learned=True, clip=1.0, seed=0, **changes):
    """A weight whose methods have starting values, or with `learned` values as if they had been trained."""
    generator = torch.Generator().manual_seed(seed)
    weight = TrainableWeight(torch.randn(OUT, IN, generator=generator), spec_for(entry, kind, **changes), "linear")
    weight.init(Start(BITS, frozenset(), clip))
    weight.draw(generator)
    if learned:
        with torch.no_grad():
            for tensor in (*factors(weight)[1:], *weight.method(Clipping).logits.values()):
                tensor.add_(torch.randn(tensor.shape, generator=generator))
    return weight


def factors(weight):
    """`A` and `B`."""
    method = weight.method(LowRank) or weight.method(AdaRound)
    return [] if method is None else [method.down, method.up]


def frozen(weight):
    return weight.freeze(FrozenWeight((OUT, IN), weight.spec, "linear", dtype=torch.float32, device=CPU))


@pytest.mark.parametrize("kind", ["cascade", "shared", "independent", "none"])
@pytest.mark.parametrize("entry", ["weight", "scale"])
def test_what_is_frozen_is_what_was_trained(entry, kind):
    weight = trainable(entry, kind)
    kept = frozen(weight)
    for bits in BITS:
        assert torch.equal(kept.derive(bits), weight.derive(bits).detach())


@pytest.mark.parametrize("store", [{"master_bits": 8}, {"master_bits": 8, "clip_ratio_bits": 4, "group_size": 12}])
def test_what_a_store_keeps_is_what_was_trained(store):
    weight = trainable("weight", "independent", learned=False, store=store, scaled=False)
    weight.round_master()
    weight.draw(torch.Generator().manual_seed(1))
    with torch.no_grad():
        weight.method(LowRank).up.normal_()
    kept = frozen(weight)
    for bits in BITS:
        torch.testing.assert_close(kept.derive(bits), weight.derive(bits).detach(), rtol=1e-6, atol=1e-6)
    assert torch.equal(kept.master(), weight.master)


def test_soft_rounding_starts_at_the_weight_and_has_a_regulariser_until_it_has_decided():
    weight = trainable("rounding", learned=False, clip=UNCLIPPED)
    assert weight.penalty(0.0) is None, "nothing was derived yet"
    soft = weight.derive(4).detach()
    grid = frozen(weight).codes(4)[1]
    within = 0.5 * grid.scale.squeeze(1)  # the grid's ends may lie half a step inside the range
    assert bool(((soft - weight.master).abs() <= within * 1.001).all())
    assert float((soft - weight.master).abs().median()) < 1e-5
    first, last = (weight.penalty(progress).item() for progress in (0.0, 1.0))
    assert 0 < last < first, "it gets less sharp"
    assert trainable("weight").penalty(0.0) is None
    none = trainable("rounding", "none")
    none.derive(4)
    assert none.penalty(0.0) is None


def test_the_adapter_is_drawn_from_its_seed_within_the_kaiming_bound():
    first, again, other = (factors(trainable(learned=False, seed=seed))[0].detach() for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    bound = IN**-0.5
    assert 0.8 * bound < float(first.abs().max()) <= bound


@pytest.mark.parametrize("bits", BITS)
def test_gradients_reach_only_the_slice_and_the_clipping_of_the_bits_in_use(bits):
    weight = trainable()
    down, up = factors(weight)
    upstream = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(2))
    (weight.derive(bits) * upstream).sum().backward()
    used = RANK * (weight.spec.groups.index(bits) + 1)
    assert bool(down.grad[:used].any(1).all())
    assert bool(up.grad[:, :used].any(0).all())
    assert not down.grad[used:].any()
    assert not up.grad[:, used:].any()
    for each, logits in weight.method(Clipping).logits.items():
        assert (logits.grad is not None) == (each == bits)
    assert bool(weight.method(Clipping).logits[bits].grad.flatten(1).any(1).all())
    assert weight.master.grad is None


@pytest.mark.parametrize("bits", BITS)
def test_gradients_equal_those_of_the_methods_formula_in_plain_autograd(bits):
    weight = trainable()
    used = RANK * (weight.spec.groups.index(bits) + 1)
    leaves = [*factors(weight), weight.method(Clipping).logits[bits]]
    upstream = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(2))
    got = torch.autograd.grad(weight.derive(bits), leaves, upstream)

    factor_a, factor_b, logits = (leaf.detach().double().requires_grad_(True) for leaf in leaves)
    moved = weight.master.double() + factor_b[:, :used] @ factor_a[:used]
    columns = []
    size = GROUP_SIZE if bits in (2, 3) else IN
    for group, part in enumerate(moved.split(size, dim=1)):
        low = torch.sigmoid(logits[0, :, group]) * part.amin(1).clamp_max(0)
        high = torch.sigmoid(logits[1, :, group]) * part.amax(1).clamp_min(0)
        scale = ((high - low) / (2**bits - 1)).unsqueeze(1)
        start, steps = -low.unsqueeze(1) / scale, part / scale
        zero_point = start + (start.round() - start).detach()
        steps = steps + (steps.round() - steps).detach()
        columns.append(scale * (clamp(steps + zero_point, 0, 2**bits - 1) - zero_point))
    expected = torch.autograd.grad(torch.cat(columns, 1), (factor_a, factor_b, logits), upstream.double())
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "moves"), [("cascade", True), ("shared", True), ("independent", False)])
def test_training_low_bits_moves_high_ones_only_through_a_shared_slice(kind, moves):
    weight = trainable(kind=kind)
    before = {bits: weight.derive(bits).detach() for bits in (2, 8)}
    optimizer = torch.optim.SGD(factors(weight), lr=0.5)
    (weight.derive(2) - weight.master).abs().sum().backward()
    optimizer.step()
    assert not torch.equal(weight.derive(2), before[2])
    assert torch.equal(weight.derive(8), before[8]) == (not moves)


def test_bits_that_never_train_keep_their_whole_range_and_a_search_clips_the_others():
    weight = TrainableWeight(torch.randn(OUT, IN), spec_for(kind="none"), "linear")
    weight.init(Start(BITS, frozenset((7, 8)), "search", torch.ones(IN)))
    logits = weight.method(Clipping).logits
    assert all(bool((logits[bits] == UNCLIPPED).all()) for bits in (7, 8))
    assert all(bool((logits[bits] < 6).any()) for bits in (2, 3, 4))


def test_a_method_says_what_trains_and_how_fast():
    weight = trainable(learned=False, learned_rounding=(2, 3))
    settings = Reconstruction(adapter_learning_rate=1e-3, clipping_learning_rate=2e-3)
    groups = list(weight.parameters(settings, dict.fromkeys(BITS, 300.0) | {2: 30.0}))
    assert [(group.rule.name, group.learning_rate) for group in groups] == [
        ("adam", 1e-3),
        ("adam", 2e-3),
        ("normalized descent", 1 / 50),
        ("normalized descent", 1.5 / 300),
    ]
    assert sum(len(group.parameters) for group in groups) == 2 + len(BITS) + 2
    assert all(parameter.requires_grad for group in groups for parameter in group.parameters)


def test_state_holds_every_tensor_that_a_copy_must_share():
    weight = trainable(learned=False, learned_rounding=(2,), store={"master_bits": 8})
    weight.round_master()
    held = {id(tensor) for tensor in weight.state()}
    rounding = weight.method(LearnedRounding)
    for tensor in (
        *factors(weight),
        *weight.method(Clipping).logits.values(),
        rounding.offsets[2],
        *rounding.min_max[2],
    ):
        assert id(tensor) in held
