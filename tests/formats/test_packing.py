import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quept.formats.packing import bytes_per_row, pack, unpack


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 8), n=st.integers(1, 70), rows=st.integers(0, 5), seed=st.integers(0, 1000))
def test_codes_come_back_and_take_no_more_bytes_than_they_need(bits, n, rows, seed):
    codes = torch.randint(2**bits, (2, rows, n), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, rows, bytes_per_row(n, bits))
    assert unpack(packed, bits, n).equal(codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_eight_codes_take_as_many_bytes_as_they_have_bits(bits):
    assert bytes_per_row(64, bits) == 8 * bits
    assert bytes_per_row(1, bits) == bits


def test_the_bytes_are_bit_planes_from_the_lowest():
    codes = torch.tensor([5, 0, 1, 2, 3, 4, 7, 6, 7], dtype=torch.uint8)
    # Code i's bit p is bit i of byte p; the second eight hold one code.
    assert pack(codes, 3).tolist() == [0b01010101, 0b11011000, 0b11100001, 1, 1, 1]


@pytest.mark.parametrize("n", range(1, 130))
def test_a_rounding_mask_has_the_bytes_of_numpy_s_packbits(n):
    mask = torch.randint(2, (3, n), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    assert pack(mask, 1).numpy().tolist() == np.packbits(mask.numpy(), axis=1, bitorder="little").tolist()


def test_a_single_code_reaches_the_highest_bit_of_every_plane():
    codes = torch.zeros(8, dtype=torch.uint8)
    codes[7] = 255
    assert pack(codes, 8).tolist() == [128] * 8


def test_rows_need_not_be_contiguous():
    codes = torch.randint(8, (16, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).T
    packed = torch.cat((pack(codes, 3), torch.full((6, 3), 255, dtype=torch.uint8)), dim=-1)
    assert unpack(packed[:, :6], 3, 16).equal(codes)
