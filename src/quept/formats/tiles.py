"""Pack codes of 2 to 8 bits in the order in which products read them.

128 consecutive codes of a row are a tile of `16 * bits` bytes; tiles follow each other without gaps, and a row's last
one is padded with zeros. A tile holds four sets of 32 codes, so that the same shift and mask takes one set out of a
whole vector. Its codes are stored in parts, the widest first, which hold their lowest bits:

| bits | parts, from the lowest bit up |
|---|---|
| 2, 4, 8 | one of as many bits |
| 3 | 2, 1 |
| 5 | 4, 1 |
| 6 | 4, 2 |
| 7 | 4, 2, 1 |

- 8 bits, 128 bytes: the codes.
- 4 bits, 64 bytes: byte `i` has lane `i` of set 0 in its lower and of set 1 in its upper half; byte `32 + i` has sets 2
  and 3.
- 2 bits, 32 bytes: bits `2k` and `2k + 1` of byte `i` are lane `i` of set `k`.
- 1 bit, 16 bytes: bit `2k` of byte `i` is lane `i` of set `k`, bit `2k + 1` lane `16 + i`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 128  # codes
SETS, LANES = 4, 32  # of a tile
PARTS = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}  # by bits


def tiles_per_row(n: int) -> int:
    """Return the tiles that `n` codes take."""
    return -(-n // TILE)


def bytes_per_row(n: int, bits: int) -> int:
    """Return the bytes that `n` codes of `bits` bits take."""
    return tiles_per_row(n) * TILE // 8 * bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes below `2**bits`, `(out, in)` uint8, to `(out, bytes_per_row(in, bits))` uint8."""
    rows, n = codes.shape
    sets = F.pad(codes, (0, -n % TILE)).view(rows, tiles_per_row(n), SETS, LANES)
    parts, shift = [], 0
    for part in PARTS[bits]:
        parts.append(_packed((sets >> shift) & (2**part - 1), part))
        shift += part
    return torch.cat(parts, dim=-1).flatten(1)


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """Invert `pack`: return the codes, `(out, n)` uint8."""
    rows = len(packed)
    grouped = packed.reshape(rows, tiles_per_row(n), TILE // 8 * bits)
    sets, shift, at = None, 0, 0
    for part in PARTS[bits]:
        size = TILE // 8 * part
        values = _unpacked(grouped[..., at : at + size], part) << shift
        sets = values if sets is None else sets | values
        shift, at = shift + part, at + size
    assert sets is not None
    return sets.reshape(rows, -1)[:, :n].contiguous()


def _packed(sets: Tensor, part: int) -> Tensor:
    """Pack one part of tiles, `(out, tiles, 4, 32)`, to `(out, tiles, 16 * part)`."""
    if part == 8:
        return sets.flatten(2)
    if part == 4:
        return (sets[:, :, 0::2] | sets[:, :, 1::2] << 4).flatten(2)
    pairs = sets[:, :, 0] | sets[:, :, 1] << 2 | sets[:, :, 2] << 4 | sets[:, :, 3] << 6
    return pairs if part == 2 else pairs[..., :16] | pairs[..., 16:] << 1


def _unpacked(packed: Tensor, part: int) -> Tensor:
    """Invert `_packed`."""
    if part == 8:
        return packed.reshape(*packed.shape[:2], SETS, LANES)
    if part == 4:
        halves = packed.reshape(*packed.shape[:2], 2, LANES)
        return torch.stack((halves & 15, halves >> 4), dim=3).flatten(2, 3)
    pairs = packed if part == 2 else torch.cat((packed, packed >> 1), dim=-1)
    return torch.stack([(pairs >> 2 * k) & (2**part - 1) for k in range(SETS)], dim=2)
