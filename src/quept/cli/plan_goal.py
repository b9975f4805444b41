"""Checks of the options that say what `quept allocate` plans for."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from quept.errors import InvalidInput
from quept.files import checked_path, explained


def check_goal(goal: Mapping[str, object], front: bool, refine: int, data: str | None) -> bool:
    """Return whether plans have to be measured; raises `InvalidInput` for options that do not go together."""
    given = [name for name, value in goal.items() if value is not None]
    if len(given) + front != 1:
        raise InvalidInput(
            "Give one of --average-bits, --max-size, --max-kl, --max-perplexity and --front: what the plan is for."
        )
    measuring = front or refine > 0 or given[0] in ("max_kl", "max_perplexity")
    if measuring and data is None:
        raise InvalidInput("Plans are measured for this, and that needs text or images: give --data.")
    if refine and (front or given[0] not in ("average_bits", "max_bytes")):
        raise InvalidInput("--refine improves a plan for one budget; use it with --average-bits or --max-size.")
    return measuring


def read_fixed(written: Sequence[str] | None) -> dict[str, int]:
    """Return the bit-widths by path or pattern of `--fix PATTERN=BITS`."""
    fixed = {}
    for text in written or ():
        pattern, _, bits = text.rpartition("=")
        if not pattern or not bits.isdecimal():
            raise InvalidInput(
                f"--fix {text!r} cannot be read; write a path or pattern and a bit-width: 'model.layers.0.*=8'."
            )
        fixed[pattern] = int(bits)
    return fixed


def make_directory(output: Path) -> None:
    """Make the directory that `--front` writes into; raises `InvalidInput` for a file."""
    checked_path(output, "output")
    if output.exists() and not output.is_dir():
        raise InvalidInput(f"--output {str(output)!r} is a file; with --front give a directory.")
    with explained(output):
        output.mkdir(parents=True, exist_ok=True)
