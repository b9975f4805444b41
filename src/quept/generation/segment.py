"""Consecutive tokens of one layer, stored at one bit-width in a buffer that grows."""

import torch
from torch import Tensor

from quept.formats.packing import bytes_per_row, pack, unpack
from quept.numerics.keyvalues import Quantized, dequantize, quantize


class Segment:
    """Tokens from given states on: their keys and values, `(2, batch, heads, tokens, size)`.

    With `bits` None the buffer holds the states as they are. Else it holds a row of bytes per vector: its packed codes,
    the two bytes of its float16 scale, and its code of zero.
    """

    def __init__(self, states: Tensor, bits: int | None) -> None:
        self.bits = bits
        self._size, self._dtype = states.shape[-1], states.dtype
        self._start, self._stop = 0, states.shape[-2]
        self._buffer = _with_room(self._encode(states), 0)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self._stop - self._start

    def append(self, states: Tensor) -> None:
        """Store the states of the next tokens."""
        rows = self._encode(states)
        if self._stop + rows.shape[-2] > self._buffer.shape[-2]:
            self._move(rows.shape[-2])
        self._buffer[..., self._stop : self._stop + rows.shape[-2], :] = rows
        self._stop += rows.shape[-2]

    def states(self) -> Tensor:
        """Return the states of all tokens, dequantized. They may be a view of the buffer."""
        if self.bits is None:
            return self._live()
        codes, scale, zero_point = torch.split(self._live(), [bytes_per_row(self._size, self.bits), 2, 1], dim=-1)
        # Contiguous, because bytes of a float16 may start anywhere in a row.
        scale = scale.contiguous().view(torch.float16)
        return dequantize(Quantized(unpack(codes, self.bits, self._size), scale, zero_point), self._dtype)

    def drop_first(self, tokens: int) -> int:
        """Drop so many of the oldest tokens, or all; returns how many."""
        dropped = min(tokens, len(self))
        self._start += dropped
        if self._start > _room(len(self)):
            self._move(0)
        return dropped

    def drop_last(self, tokens: int) -> int:
        """Drop so many of the latest tokens, or all; returns how many."""
        dropped = min(tokens, len(self))
        self._stop -= dropped
        return dropped

    def select(self, indices: Tensor) -> None:
        """Keep the sequences at `indices` of the batch, `(n,)` int64, in this order."""
        self._buffer = self._live()[:, indices.to(self._buffer.device)]
        self._start, self._stop = 0, len(self)

    def bytes(self) -> int:
        """Return the bytes held in memory, with the room to grow."""
        return self._buffer.nbytes

    def _encode(self, states: Tensor) -> Tensor:
        if self.bits is None:
            return states
        codes, scale, zero_point = quantize(states, self.bits)
        return torch.cat((pack(codes, self.bits), scale.view(torch.uint8), zero_point), dim=-1)

    def _live(self) -> Tensor:
        return self._buffer[..., self._start : self._stop, :]

    def _move(self, more: int) -> None:
        """Move what is live to a new buffer: where it was may still be in use by who was given a view of it."""
        self._buffer = _with_room(self._live(), more)
        self._start, self._stop = 0, len(self)


def _with_room(rows: Tensor, more: int) -> Tensor:
    """Return a copy of rows `(..., tokens, bytes)` with room for `more` tokens and then some."""
    *before, tokens, size = rows.shape
    with torch.inference_mode(False):  # where a buffer could not be written to afterwards
        buffer = torch.empty(*before, tokens + more + _room(tokens + more), size, dtype=rows.dtype, device=rows.device)
    buffer[..., :tokens, :] = rows
    return buffer


def _room(tokens: int) -> int:
    """Return the number of tokens to leave room for: a share, so that a token moves a bounded number of times."""
    return tokens // 16 + 16
