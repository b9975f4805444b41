"""Locks that are free in a forked child.

A child of `os.fork`, such as a worker of a `DataLoader`, has only the thread that forked. A lock that another thread
held at that moment would stay locked in the child for ever, and the state that it guards would be half changed. So a
fork waits until each of these locks is free, and both processes go on with all of them free.
"""

import os
from itertools import count
from threading import RLock
from types import TracebackType
from typing import Protocol
from weakref import WeakValueDictionary


class Lock(Protocol):
    """A lock that one thread may take several times."""

    def acquire(self) -> bool:
        """Take it, waiting until it is free."""

    def release(self) -> None:
        """Give it back."""

    def __enter__(self) -> bool: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


_LOCKS: WeakValueDictionary[int, Lock] = WeakValueDictionary()
_NUMBERS = count()


def fork_safe_lock() -> Lock:
    """Return a new lock. Where code holds two of them, it takes the older one first, as a fork does."""
    lock: Lock = RLock()
    _LOCKS[next(_NUMBERS)] = lock
    return lock


_FORKING = fork_safe_lock()  # the first of all, so that two threads that fork do so one after the other
_held: list[Lock] = []


def _before() -> None:
    global _held
    # `valuerefs` is a copy, whatever other threads add meanwhile.
    found = sorted((reference.key, reference()) for reference in _LOCKS.valuerefs())
    taken = [lock for _, lock in found if lock is not None]
    for lock in taken:
        lock.acquire()
    _held = taken


def _after() -> None:
    global _held
    taken, _held = _held, []
    for lock in reversed(taken):
        lock.release()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
