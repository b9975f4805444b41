"""Patterns of module paths, as plans, rules and constraints have them.

In a pattern `*` stands for anything, `?` for one character, `[12]` for one of these. Each pattern may be tried on every
path of a model, so their number is limited.
"""

import re
from collections.abc import Callable, Iterable
from fnmatch import translate
from functools import lru_cache

from quept.errors import InvalidInput

MOST_PATTERNS = 4096  # tried on a thousand paths, these take a few seconds
LONGEST_NAME = 1000  # characters of a pattern or path


def is_pattern(name: object) -> bool:
    """Return whether an entry is a pattern, not a path."""
    return isinstance(name, str) and any(character in name for character in "*?[")


def matches(path: str, pattern: str) -> bool:
    """Return whether a module path matches a pattern, in which upper and lower case differ."""
    return _matcher(pattern)(path) is not None


def check_names(names: Iterable[object], where: str, most: int) -> None:
    """Raise `InvalidInput` for too many names, `most` or `MOST_PATTERNS` of these patterns, and for one too long.

    `where` says in messages what holds them ("The plan").
    """
    listed = list(names)
    if len(listed) > most:
        raise InvalidInput(
            f"{where} has {len(listed)} entries; at most {most} are allowed. Use patterns for many paths."
        )
    if (count := sum(map(is_pattern, listed))) > MOST_PATTERNS:
        raise InvalidInput(
            f"{where} has {count} patterns; at most {MOST_PATTERNS} are allowed. Merge them, or name paths instead."
        )
    for name in listed:
        if isinstance(name, str) and len(name) > LONGEST_NAME:
            raise InvalidInput(
                f"{where} has a name of {len(name)} characters, which begins {name[:40]!r}; at most {LONGEST_NAME} are "
                "allowed. Correct it."
            )


@lru_cache(maxsize=2 * MOST_PATTERNS)
def _matcher(pattern: str) -> Callable[[str], object]:
    # fnmatch itself remembers 256 of them, and would compile more of them anew for every path.
    return re.compile(translate(pattern)).match
