"""Hidden states on their way through the blocks.

A stream holds one hidden state per sample and token. Small streams live in memory; above the caller's budget they
live in files that are mapped into memory, so that the operating system, not the process, decides what stays.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from quept.errors import QueptError
from quept.files import refusal

STREAM_PREFIX = "stream-"


class Stream:
    """`(samples, tokens, hidden)` hidden states of one dtype; rows are read to a device and written back."""

    def __init__(self, states: Tensor, device: torch.device, in_file: bool = False) -> None:
        self._states, self.device, self._in_file = states, device, in_file

    @property
    def samples(self) -> int:
        """The number of samples."""
        return self._states.shape[0]

    @property
    def shape(self) -> torch.Size:
        """Tokens and channels of a sample."""
        return self._states.shape[1:]

    def read(self, rows: Sequence[int] | slice) -> Tensor:
        """Return a copy of the given samples on the compute device, `(rows, tokens, hidden)`."""
        return self._states[rows if isinstance(rows, slice) else list(rows)].to(self.device, copy=True)

    def write(self, rows: slice, states: Tensor) -> None:
        """Replace the given samples, by others of the same shape."""
        self._states[rows] = states.to(self._states.device)

    def chunks(self, size: int) -> Iterator[slice]:
        """Consecutive slices of at most `size` samples that cover the stream."""
        for start in range(0, self.samples, size):
            yield slice(start, min(start + size, self.samples))


class StreamStore:
    """Makes streams, in memory while they fit `budget` bytes together, in mapped files in `folder` beyond it.

    The files vanish with the store, and with the process however it ends: they are unlinked as soon as mapped.
    """

    def __init__(self, budget: int, folder: Path, device: torch.device) -> None:
        self.budget, self.folder, self.device = budget, folder, device
        self.in_memory = 0
        self.in_files = 0
        self._lock = threading.Lock()  # streams are rewritten side by side

    @property
    def held(self) -> int:
        """Bytes of all streams."""
        return self.in_memory + self.in_files

    def empty(self, samples: int, tokens: int, hidden: int, dtype: torch.dtype) -> Stream:
        """Return a stream of undefined content."""
        count = samples * tokens * hidden
        size = count * dtype.itemsize
        with self._lock:
            fits = self.in_memory + size <= self.budget
            if fits:
                self.in_memory += size
            else:
                self.in_files += size
        if fits:
            return Stream(torch.empty(samples, tokens, hidden, dtype=dtype), self.device)
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=STREAM_PREFIX) as file:
                # Reserved now: a full disk that is met while writing to a mapped file kills the process.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
                mapped = torch.from_file(file.name, shared=True, size=count, dtype=dtype)
        except OSError as error:
            raise QueptError(refusal(self.folder, error)) from None
        return Stream(mapped.view(samples, tokens, hidden), self.device, in_file=True)

    def replace(self, stream: Stream, chunk: int, make: Callable[[slice], Tensor]) -> Stream:
        """Return a stream of what `make` gives for `chunk` samples at a time, in the order of `stream`.

        It takes the memory of `stream`, which may not be read any more, where the shape is the same.
        """
        replaced: Stream | None = None
        for rows in stream.chunks(chunk):
            states = make(rows)
            if replaced is None:
                fits = states.shape[1:] == stream.shape
                replaced = stream if fits else self.empty(stream.samples, *_size(states), stream._states.dtype)
            replaced.write(rows, states)
        if replaced is None or replaced is stream:
            return stream
        with self._lock:
            if stream._in_file:
                self.in_files -= stream._states.nbytes
            else:
                self.in_memory -= stream._states.nbytes
        return replaced

    def copy(self, stream: Stream, chunk: int) -> Stream:
        """Return a stream of its own with the same content."""
        samples, tokens, hidden = stream._states.shape
        fresh = self.empty(samples, tokens, hidden, stream._states.dtype)
        for rows in stream.chunks(chunk):
            fresh.write(rows, stream.read(rows))
        return fresh


def _size(states: Tensor) -> tuple[int, int]:
    """Return the numbers of tokens and channels."""
    _, tokens, hidden = states.shape
    return tokens, hidden
