"""Hadamard matrices are what they say, and multiplying by them is fast and exact."""

import pytest
import torch

from quept.numerics.hadamard import Rotation, factors, hadamard

# Hidden and MLP sizes of published models: LLaMA-2 and 3, Qwen2.5, Gemma-2, Phi-3, OPT, GPT-2.
PUBLISHED = (4096, 11008, 5120, 13824, 14336, 896, 4864, 1536, 8960, 3584, 18944, 27648, 29568, 8192, 28672, 2304, 9216)
PUBLISHED += (3072, 768, 2048, 16384, 1600, 6400, 2560, 10240, 1152, 6912)
# Up to 300, multiples of four for which neither Paley's construction nor a product is known.
WITHOUT = {92, 116, 156, 172, 184, 188, 232, 236, 260, 268, 292}


@pytest.mark.parametrize("order", [order for order in [1, 2, *range(4, 301, 4)] if order not in WITHOUT] + [344, 2304])
def test_rows_are_orthogonal_and_of_ones(order):
    matrix = hadamard(order).double()
    assert torch.equal(matrix.abs(), torch.ones(order, order, dtype=torch.float64))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [3, 6, 10, 92, 172])
def test_an_order_without_a_construction_is_refused(order):
    assert factors(order) is None
    with pytest.raises(ValueError, match=str(order)):
        hadamard(order)


def test_few_orders_have_no_construction():
    assert {order for order in range(4, 301, 4) if factors(order) is None} == WITHOUT


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_are_rotated_whole_by_small_factors(size):
    found = factors(size)
    assert Rotation.of(size).whole
    assert found is not None
    assert sum(found) <= 512  # multiplications a channel


@pytest.mark.parametrize("size", [1, 2, 3, 43, 64, 92, 97, 172, 256, 300, 344, 704, 1408])
def test_a_rotation_is_the_matrix_it_stands_for(size):
    rotation = Rotation.of(size)
    matrix = torch.block_diag(*[hadamard(order).double() / order**0.5 for order in rotation.orders])
    values = torch.randn(2, 3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotation(values), values @ matrix.T)
    torch.testing.assert_close(rotation(torch.eye(size, dtype=torch.float64)).T, matrix)


@pytest.mark.parametrize("size", range(1, 301))
def test_every_size_has_a_rotation_that_keeps_lengths(size):
    rotation = Rotation.of(size)
    assert rotation.size == size
    values = torch.randn(4, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    torch.testing.assert_close(rotation(values).norm(dim=-1), values.norm(dim=-1))


def test_a_size_without_a_matrix_is_rotated_in_even_parts():
    assert Rotation.of(172).orders == (88, 84)
    assert Rotation.of(92).orders == (48, 44)


def test_a_rotated_linear_keeps_its_function():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 172, dtype=torch.float64, generator=generator)
    inputs = torch.randn(5, 172, dtype=torch.float64, generator=generator)
    rotation = Rotation.of(172)
    torch.testing.assert_close(rotation(inputs) @ rotation(weight).T, inputs @ weight.T)


def test_an_outlier_is_spread_over_all_channels():
    values = torch.zeros(11008)
    values[77] = 100.0
    assert float(Rotation.of(11008)(values).abs().max()) == pytest.approx(100 / 11008**0.5, rel=1e-5)


def test_no_channels_are_refused():
    with pytest.raises(ValueError, match="at least one channel"):
        Rotation.of(0)
