"""Bit-widths and precisions as Python's callers write them."""

from collections.abc import Sequence

from quept.config import Precision, parse_bits, parse_precisions
from quept.errors import InvalidInput

BitsLike = str | int | Precision | Sequence[str | int | Precision]  # `2-8`, 4, `w4a8`, or several of these


def bits_text(given: BitsLike | None) -> str | None:
    """Return bits as the command line writes them, such as `2,4,8`; raises `InvalidInput` for anything but bits."""
    if given is None or isinstance(given, str):
        return given
    each = list(given) if isinstance(given, Sequence) else [given]
    if not each or not all(isinstance(one, str | int | Precision) and not isinstance(one, bool) for one in each):
        raise InvalidInput(f"bits {given!r} cannot be read; give a number (4), text (2-8 or w4a8), or a list of these.")
    return ",".join(map(str, each))


def read_bits(given: str | int | Sequence[int] | None) -> tuple[int, ...] | None:
    """Return bit-widths from 2 to 8, ascending; None stays None. Raises `InvalidInput` for anything else."""
    text = bits_text(given)
    return None if text is None else parse_bits(text)


def read_precisions(given: BitsLike | None) -> tuple[Precision, ...] | None:
    """Return precisions; None stays None. Raises `InvalidInput` for what is none."""
    text = bits_text(given)
    return None if text is None else parse_precisions(text)
