"""Progress of a calibration while it runs, and its report when it is done."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from quept.storage.manifest import Manifest


class Progress(Protocol):
    """Receives the progress of a calibration."""

    def stage(self, name: str) -> None:
        """Receive the name of the current stage, such as `opening` or `forward and backward`; see `Report.seconds`."""

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
    """The result of a calibration: where the artifact is, what is in it, and what it took.

    `seconds` is by phase, `trained_tokens` counts each token once for every forward and backward pass over it, and
    `stream_bytes` is what the hidden states occupied, in memory and in mapped files.
    """

    directory: Path
    manifest: Manifest
    seconds: dict[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0
    trained_tokens: int = 0
    stream_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary for `json.dump`."""
        return {
            "output": str(self.directory),
            "total_seconds": self.total_seconds,
            "seconds": dict(self.seconds),
            "trained_tokens": self.trained_tokens,
            "stream_bytes": self.stream_bytes,
            "manifest": self.manifest.model_dump(mode="json"),
        }
