import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quept.numerics import merging

shapes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 6))
seeds = st.integers(0, 2**32 - 1)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights_for(groups, seed):
    drawn = torch.rand(groups, generator=torch.Generator().manual_seed(seed)) + 0.1
    return tuple((drawn / drawn.sum()).tolist())


def cosine(one, other):
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / (math.sqrt(sum(a * a for a in one)) * math.sqrt(sum(b * b for b in other)))


def selective_by_loops(outputs, kept, weights):
    """Token merging as published: one token at a time."""
    groups, batch, tokens, hidden = outputs.shape
    values = outputs.tolist()
    result = torch.empty(batch, tokens, hidden)
    for sample in range(batch):
        similar = [cosine(values[0][sample][token], values[-1][sample][token]) for token in range(tokens)]
        ranked = sorted(range(tokens), key=lambda token: -similar[token])
        chosen = set(ranked[: round(kept * tokens)])
        for token in range(tokens):
            for channel in range(hidden):
                mixed = sum(weights[group] * values[group][sample][token][channel] for group in range(groups))
                result[sample, token, channel] = values[0][sample][token][channel] if token in chosen else mixed
    return result


@given(shapes, seeds, st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]))
@settings(deadline=None, max_examples=60)
def test_selective_merging_equals_a_loop_over_single_tokens(shape, seed, kept):
    # One channel makes every similarity exactly one or minus one, where float32 and float64 break ties differently.
    groups, batch, tokens, hidden = shape
    outputs = normal(groups, batch, tokens, hidden + 1, seed=seed)
    outputs[-1] += 0.1 * outputs[0] if groups > 1 else 0
    weights = weights_for(groups, seed)
    if groups == 1:
        weights = (1.0,)
    torch.testing.assert_close(
        merging.selective(outputs, kept, weights), selective_by_loops(outputs, kept, weights), rtol=1e-5, atol=1e-6
    )


def test_keeping_every_token_returns_the_highest_group_as_it_is():
    outputs = normal(3, 2, 7, 5)
    assert torch.equal(merging.selective(outputs, 1.0, (0.3, 0.3, 0.4)), outputs[0])


def test_keeping_no_token_mixes_all_of_them():
    outputs, weights = normal(3, 2, 7, 5), (0.3, 0.3, 0.4)
    expected = 0.3 * outputs[0] + 0.3 * outputs[1] + 0.4 * outputs[2]
    torch.testing.assert_close(merging.selective(outputs, 0.0, weights), expected)
    torch.testing.assert_close(merging.mixture(outputs, weights), expected)


@given(st.integers(1, 12), st.floats(0, 1), seeds)
@settings(deadline=None, max_examples=60)
def test_each_sample_keeps_its_own_share_of_tokens(tokens, kept, seed):
    outputs = normal(2, 3, tokens, 8, seed=seed)
    merged = merging.selective(outputs, kept, (0.5, 0.5))
    unchanged = (merged == outputs[0]).all(-1).sum(-1)
    assert unchanged.tolist() == [round(kept * tokens)] * 3


def test_the_most_similar_tokens_are_the_ones_kept_whatever_their_size():
    direction = torch.tensor([1.0, 0.0])
    flipped = torch.tensor([[0.0, 1.0], [1.0, 0.1], [-1.0, 0.0], [100.0, 1.0]])
    outputs = torch.stack([direction.expand(4, 2), flipped]).unsqueeze(1)
    merged = merging.selective(outputs, 0.5, (0.5, 0.5))[0]
    assert (merged == direction).all(-1).tolist() == [False, True, False, True]


def test_among_equally_similar_tokens_the_earlier_are_kept():
    token = torch.tensor([3.0, -2.0, 1.0])
    outputs = torch.stack([token, -token]).view(2, 1, 1, 3).repeat(1, 2, 9, 1)
    merged = merging.selective(outputs, 0.4, (0.5, 0.5))
    kept = (merged == token).all(-1)
    assert kept.tolist() == [[True] * 4 + [False] * 5] * 2
    assert torch.equal(merged[:, 4:], torch.zeros(2, 5, 3))


def test_the_middle_group_counts_in_the_mixture_but_not_in_the_choice():
    outputs = normal(3, 1, 8, 4)
    other = outputs.clone()
    other[1] = normal(1, 8, 4, seed=9)
    kept = [(merging.selective(x, 0.5, (0.3, 0.3, 0.4)) == x[0]).all(-1) for x in (outputs, other)]
    assert torch.equal(*kept)
    assert not torch.equal(*(merging.mixture(x, (0.3, 0.3, 0.4)) for x in (outputs, other)))


@given(shapes, seeds, st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_identical_outputs_are_a_fixed_point(shape, seed, kept):
    groups, *rest = shape
    token = normal(*rest, seed=seed)
    outputs = token.expand(groups, *rest).contiguous()
    torch.testing.assert_close(merging.selective(outputs, kept, weights_for(groups, seed)), token)
    generator = torch.Generator().manual_seed(seed)
    assert torch.equal(merging.random_choice(outputs, generator), token)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_mixture_keeps_the_dtype_and_does_not_make_the_stream_grow(dtype):
    """The weights rounded to bfloat16 would sum to 1.002, block after block."""
    outputs = (1 + 0.5 * normal(3, 4, 64, 64, seed=1)).to(dtype)
    merged = merging.mixture(outputs, (0.3, 0.3, 0.4))
    assert merged.dtype == dtype
    expected = (torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64).view(3, 1, 1, 1) * outputs.double()).sum(0)
    assert float(merged.double().mean() / expected.mean()) == pytest.approx(1, abs=2e-4)


@given(shapes, seeds)
@settings(deadline=None, max_examples=40)
def test_random_choice_takes_every_token_whole_from_one_group(shape, seed):
    outputs = normal(*shape, seed=seed)
    chosen = merging.random_choice(outputs, torch.Generator().manual_seed(seed))
    assert bool((outputs == chosen).all(-1).any(0).all())


def test_random_choice_follows_its_seed_and_uses_all_groups_alike():
    outputs = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 10, 300, 2)
    first, again, other = (merging.random_choice(outputs, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    clip_ratios = torch.bincount(first[..., 0].flatten().long(), minlength=3) / 3000
    assert bool(((clip_ratios - 1 / 3).abs() < 0.04).all())
