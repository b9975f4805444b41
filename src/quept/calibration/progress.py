"""What a calibration tells its caller: while it runs, and when it is done."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from quept.storage.manifest import Manifest


class Progress(Protocol):
    """What a calibration reports while it runs."""

    def stage(self, name: str) -> None:
        """What is being done now, such as `opening` or `forward and backward`; the phases of `Report.seconds`."""

    def start(self, blocks: int, steps: int) -> None:
        """The number of blocks, and of optimizer steps per block."""

    def step(self, block: int, step: int, loss: float) -> None:
        """Block `block` (from 0) has made `step` steps."""

    def note(self, text: str) -> None:
        """Something the user should know: a setting that was adapted, a block that was read back."""


class Silent:
    """Reports nothing."""

    def stage(self, name: str) -> None:
        """Nothing."""

    def start(self, blocks: int, steps: int) -> None:
        """Nothing."""

    def step(self, block: int, step: int, loss: float) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Report:
    """What a calibration did: where the artifact is, what is in it, and what it took.

    `seconds` is by phase, `trained_tokens` counts each token once for every forward and backward pass over it, and
    `stream_bytes` is what the hidden states occupied, in memory and in mapped files.
    """

    directory: Path
    manifest: Manifest
    seconds: dict[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0
    trained_tokens: int = 0
    stream_bytes: int = 0
