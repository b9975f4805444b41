"""How long calibrations take alone, and beside other busy processes.

    python benchmarks/busy.py                                     the demo, beside 0, 1 and 2 busy processes
    python benchmarks/busy.py --model DIR --data TEXT --samples 40 --epochs 2 --compile
                                                                  `quept calibrate` with the recipe `best`
    python benchmarks/busy.py --beside ../earlier/src             the same with another checkout's sources beside it

Each run is a process of its own, as a user's is; a busy process is one that counts without end. What carries over to
other machines is the ratio to the idle run. With `--beside` both versions run under each load, right after one another.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parents[1] / "src"


@dataclass(frozen=True)
class Run:
    """One run: seconds on the wall, None where the limit ended it, and of all processors."""

    sources: str
    busy: int
    wall: float | None
    processor: float


def main() -> None:
    options = arguments()
    sources = {"this": HERE, **({} if options.beside is None else {"other": options.beside})}
    runs = []
    for busy in options.busy:
        for name, path in sources.items():
            with spinning(busy):
                runs.append(measure(name, path, busy, options))
            print(f"{name}, beside {busy}: {runs[-1].wall} s, {runs[-1].processor:.0f} s of processors", flush=True)
    show(runs)
    if options.json is not None:
        settings = {name: str(value) for name, value in vars(options).items()}
        options.json.write_text(json.dumps({"settings": settings, "runs": [asdict(run) for run in runs]}, indent=2))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hugging Face model to calibrate (default: run the demo)")
    parser.add_argument("--data", help="text for --model")
    parser.add_argument("--samples", type=int, help="windows (default: the recipe's)")
    parser.add_argument("--epochs", type=int, help="epochs (default: the recipe's)")
    parser.add_argument("--compile", action="store_true", help="train compiled code, however short the run is")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="busy processes (default: 0 1 2)")
    parser.add_argument("--beside", type=Path, metavar="SRC", help="sources of another checkout, its kernels built")
    parser.add_argument("--limit", type=float, default=1800, help="seconds after which a run is ended")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


@contextmanager
def spinning(count: int) -> Iterator[None]:
    """Within: so many processes that take a processor each, as far as there are any."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()


def measure(name: str, sources: Path, busy: int, options: argparse.Namespace) -> Run:
    """Run the job once, in a new directory."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "quept", *job(Path(folder), options)]
        environment = {**os.environ, "PYTHONPATH": str(sources.resolve())}
        start, before = time.perf_counter(), children_seconds()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _, errors = process.communicate(timeout=options.limit)
            wall: float | None = round(time.perf_counter() - start, 1)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
            wall = None
        if wall is not None and process.returncode:
            raise SystemExit(errors.decode(errors="replace"))
        return Run(name, busy, wall, children_seconds() - before)


def children_seconds() -> float:
    """Seconds of processors that all children took that have ended; busy ones end after what they are beside."""
    times = os.times()
    return times.children_user + times.children_system


def job(folder: Path, options: argparse.Namespace) -> list[str]:
    """The command line after `quept`."""
    if options.model is None:
        return ["demo", "--output", str(folder / "demo")]
    words = ["calibrate", options.model, "--output", str(folder / "out"), "--data", str(options.data)]
    words += ["--sequence-length", "512", *(["--compile"] if options.compile else [])]
    for name in ("samples", "epochs"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name}", str(value)]
    return words


def show(runs: list[Run]) -> None:
    idle = {run.sources: run.wall for run in runs if run.busy == 0}
    table = Table("sources", "busy processes", "seconds", "to idle", "of processors")
    for run in sorted(runs, key=lambda run: (run.sources, run.busy)):
        alone = idle.get(run.sources)
        ratio = f"{run.wall / alone:.2f}" if run.wall and alone else "-"
        wall = "over the limit" if run.wall is None else f"{run.wall:.0f}"
        table.add_row(run.sources, str(run.busy), wall, ratio, f"{run.processor:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
