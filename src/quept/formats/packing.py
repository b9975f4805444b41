"""Pack codes of 1 to 8 bits, such as keys and values or a rounding mask, without waste.

Eight codes of `b` bits take `b` bytes, one for each bit plane, the lowest bits' first: bit `i` of byte `p` is bit `p`
of code `i`. The last eight are padded with zeros. Every bit-width takes the same few steps on whole planes: eight
codes, a byte each, are one 64-bit integer, from which a multiplication gathers one bit of each byte; unpacking looks
bytes up in a table.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

_ONE_BIT_OF_EACH_BYTE = 0x0101010101010101
# Moves bit 0 of byte i to bit i of the highest byte; no two products meet in the same bit.
_GATHER = 0x0102040810204080


def bytes_per_row(n: int, bits: int) -> int:
    """Return the bytes that `n` codes of `bits` bits take."""
    return -(-n // 8) * bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes below `2**bits`, `(..., n)` uint8, to `(..., bytes_per_row(n, bits))` uint8."""
    eights = F.pad(codes, (0, -codes.shape[-1] % 8)).contiguous().view(torch.int64)
    planes = [((eights >> plane) & _ONE_BIT_OF_EACH_BYTE) * _GATHER >> 56 for plane in range(bits)]
    # The shift repeats the sign; the conversion drops it.
    return torch.stack(planes, dim=-1).to(torch.uint8).flatten(-2)


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """Invert `pack`: return the codes, `(..., n)` uint8."""
    *rows, size = packed.shape
    planes = packed.reshape(*rows, size // bits, bits)
    eights = torch.zeros(planes[..., 0].numel(), dtype=torch.int64, device=packed.device)
    for plane in range(bits):
        # By index_select: three times as fast on a CPU as indexing, and this is most of what reading a cache costs.
        eights |= _spread(plane, packed.device).index_select(0, planes[..., plane].flatten().int())
    return eights.view(torch.uint8).view(*rows, size // bits * 8)[..., :n]


@lru_cache(maxsize=64)
def _spread(plane: int, device: torch.device) -> Tensor:
    """Return, for each value of a byte, its bits moved to bit `plane` of eight bytes: `(256,)` int64."""
    byte, place = torch.arange(256, dtype=torch.uint8).unsqueeze(1), torch.arange(8, dtype=torch.uint8)
    return (((byte >> place) & 1) << plane).view(torch.int64).squeeze(1).to(device)
