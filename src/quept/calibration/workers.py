"""Parts of a step that need nothing of one another, each on a thread of its own.

A step of a calibration runs a block once for each bit group, and no bit-width needs what another owns. Splitting
every operation between the processor's threads instead makes each of them wait for the slowest at the end of each
operation: small operations are over before that pays, and beside another busy process the waiting is most of the time.
So the bit groups run side by side, with as many threads each as there are processors to a group, on small machines
one. There may be more groups than processors: the operating system shares them out.

What a task computes does not depend on which others run beside it, and results are used in the order of the tasks: a
calibration ends in the same bytes whether they run side by side or in turn.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from typing import Self, TypeVar

import torch

from quept.devices import threads, threads_for

Item = TypeVar("Item")
Result = TypeVar("Result")

MEMORY_SHARE = 0.25  # of the machine's memory, for what tasks that run at once take together
UNKNOWN_MEMORY = 8 << 30  # bytes, where the system does not tell
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of containers


class WorkerPool:
    """Runs up to `at_once` tasks at the same time, each with `each` threads of PyTorch's; `each` None leaves these.

    `alone` is how many an operation has while nothing runs side by side; None is as many as before.
    """

    def __init__(self, at_once: int = 1, each: int | None = None, alone: int | None = None) -> None:
        self.at_once, self.each, self.alone = at_once, each, alone
        self._pool: ThreadPoolExecutor | None = None
        self._before = torch.get_num_threads()

    @classmethod
    def of(cls, device: torch.device, tasks: int, task_bytes: int, values: int) -> "WorkerPool":
        """Return the workers for up to `tasks` tasks, of operations on about `values` values.

        `task_bytes` is what one takes of memory while it runs. PyTorch's number of threads is what may be used in all.
        """
        count = torch.get_num_threads()
        if device.type != "cpu" or count == 1:
            return cls()
        at_once = max(1, min(tasks, int(MEMORY_SHARE * _memory() / max(1, task_bytes))))
        return cls(at_once, threads_for(values) or max(1, count // at_once), threads_for(values))

    def map(self, task: Callable[[Item], Result], items: Iterable[Item], in_turn: bool = False) -> list[Result]:
        """Return what `task` gives for each item, in their order; the first that fails raises when all have ended."""
        if self._pool is None or in_turn:
            return [task(item) for item in items]
        started = [self.start(task, item) for item in items]
        try:
            return [each.result() for each in started]
        finally:
            for each in started:
                each.cancel()
            for each in started:
                if not each.cancelled():
                    each.exception()

    def start(self, task: Callable[[Item], Result], item: Item) -> "Future[Result]":
        """Begin one task; without threads of its own, the workers ends it first."""
        if self._pool is not None:
            # In this thread's context: settings of PyTorch's compiler are part of it.
            return self._pool.submit(copy_context().run, task, item)
        done: Future[Result] = Future()
        done.set_result(task(item))
        return done

    @contextmanager
    def undivided(self) -> Iterator[None]:
        """Within: nothing runs side by side, and operations that are long enough have all threads."""
        pool, self._pool = self._pool, None
        try:
            with threads(None if self.each is None else self.alone or self._before):
                yield
        finally:
            self._pool = pool

    def __enter__(self) -> Self:
        self._before = torch.get_num_threads()
        if self.each is not None:
            torch.set_num_threads(self.each)
            if self.at_once > 1:
                # The number is each thread's own.
                self._pool = ThreadPoolExecutor(
                    self.at_once, "quept-workers", initializer=torch.set_num_threads, initargs=(self.each,)
                )
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        torch.set_num_threads(self._before)


def _memory() -> int:
    """Return the bytes of memory that the machine has, or that the container may use of it."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else UNKNOWN_MEMORY
    for limit in LIMITS:
        with suppress(OSError, ValueError):  # there is none, or it says "max"
            found = min(found, int(limit.read_text()))
    return found
