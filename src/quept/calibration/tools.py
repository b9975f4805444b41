"""Everything that the steps of one calibration share: streams, threads, the clock, the way a block runs."""

from dataclasses import dataclass

from quept.calibration.clock import Clock
from quept.calibration.forward import EagerForward, ForwardPass
from quept.calibration.stream import StreamStore
from quept.calibration.workers import WorkerPool


@dataclass
class Tools:
    """The tools of a calibration.

    Attributes:
        streams: makes streams of hidden states, in memory or in files.
        clock: adds up seconds by phase.
        forward: runs a block while it trains.
        workers: run bit groups side by side.
        chunk: samples in one forward pass that needs no gradients.
    """

    streams: StreamStore
    clock: Clock
    forward: ForwardPass
    workers: WorkerPool
    chunk: int = 1

    @classmethod
    def plain(cls, streams: StreamStore, chunk: int = 1) -> "Tools":
        """Return tools that do one thing after the other, uncompiled."""
        return cls(streams, Clock(), EagerForward(), WorkerPool(), chunk)
