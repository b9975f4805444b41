"""Progress of long commands: a bar on a terminal, elsewhere a plain line from time to time.

Both say what is being done, how much of it is done, and how much time is left; the bar from the first second on, lines
at least every ten seconds, also while a single step takes longer than that.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from quept.cli.console import clean

FIRST, EVERY = 3.0, 8.0  # seconds to the first plain line, and from one to the next
MEMORY = 600.0  # seconds that the estimate of the time left looks back
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
    TextColumn("{task.fields[detail]}"),
)


class Display:
    """The progress of a command. Made by `display`."""

    def __init__(self, bars: Progress, label: str) -> None:
        self._bars = bars
        self._task = bars.add_task(label, total=None, detail="")

    def show(self, label: str, done: int | None = None, total: int | None = None, detail: str | None = None) -> None:
        """Say what is being done; `done` of `total` units of the whole command, where that is known."""
        self._bars.update(self._task, description=clean(label), completed=done, total=total)
        if detail is not None:
            self._bars.update(self._task, detail=detail)

    def advance(self) -> None:
        """One more unit is done."""
        self._bars.advance(self._task)

    def note(self, text: str) -> None:
        """Say something that stays to be read."""
        self._bars.console.print(f"note: {clean(text)}", highlight=False, markup=False)

    def line(self) -> str:
        """Return the present state in one plain line."""
        task = self._bars.tasks[self._task]
        parts = [f"[{_clock(task.elapsed or 0.0)}] {task.description}"]
        if task.total:
            parts.append(f"{task.completed:.0f}/{task.total:.0f}")
        if task.fields["detail"]:
            parts.append(str(task.fields["detail"]))
        if (left := task.time_remaining) is not None and not task.finished:
            parts.append(f"about {_clock(left)} left")
        return ", ".join(parts)


@contextmanager
def display(quiet: bool, label: str) -> Iterator[Display]:
    """Show progress on standard error while the context lasts, beginning with `label`; nothing if `quiet`."""
    terminal = sys.stderr.isatty()  # and nothing else, such as what asks for colours in a log
    bars = Progress(
        *COLUMNS,
        console=Console(stderr=True, quiet=quiet, soft_wrap=not terminal),
        disable=quiet or not terminal,
        transient=True,
        speed_estimate_period=MEMORY,
    )
    shown = Display(bars, label)
    if quiet:
        yield shown
    elif terminal:
        with bars:
            yield shown
    else:
        done = threading.Event()
        writer = threading.Thread(target=_write_lines, args=(shown, done), name="quept-progress", daemon=True)
        writer.start()
        try:
            yield shown
        finally:
            done.set()
            writer.join()


def _write_lines(shown: Display, done: threading.Event) -> None:
    """Write the present state every few seconds until `done`; what takes no longer than that needs no word."""
    pause = FIRST
    while not done.wait(pause):
        print(shown.line(), file=sys.stderr, flush=True)
        pause = EVERY


def _clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
