"""Whether calibrations that are killed resume to the same bytes: SIGKILL at random moments, in every recipe.

    python scripts/kill_test.py                       at least 50 kills that land, over all shipped recipes
    python scripts/kill_test.py --kills 500 --seed 1  others, and more of them

Every recipe calibrates its built-in model, shortly, once without a disturbance. Then the same is begun, killed, resumed
and killed again, up to three times, and at last left to finish: the artifact must have the same bytes, file by file. A
third of the kills come at a random time, a third while a random file is being written, and a third right after one was
finished. A kill counts where the process died of it with its work unfinished. The exit status is 1 where bytes differ
or a run fails, and the work is kept to look at.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import quept
from quept import builtin, recipes

SHORT = {"epochs": 2, "batch_size": 4}
SAMPLES, LENGTH = 8, 64
MOST_KILLS = 3  # of one calibration
POLL = 0.0005  # seconds between looks at the files
PATIENCE = 600  # seconds for one run


def calibrate(name: str, output: str) -> None:
    """Begin a calibration, or go on with it; the work of a process that may be killed."""
    torch.set_num_threads(1)
    recipe = quept.load_recipe(name)
    recipe = recipe.updated(reconstruction=recipe.reconstruction.updated(**SHORT))
    vision = "vision" in name
    model = builtin.vision_model_path() if vision else builtin.model_path()
    data = builtin.calibration_images_path() if vision else builtin.calibration_text_path()
    length: dict[str, Any] = {} if vision else {"sequence_length": LENGTH}
    try:
        quept.calibrate(model, output, data=data, recipe=recipe, samples=SAMPLES, compiled=False, resume=True, **length)
    except Exception:
        traceback.print_exc()
        os._exit(1)


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder, by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


class Trial:
    """Calibrations by one recipe, each killed on its way, and compared with one that was not."""

    def __init__(self, name: str, folder: Path, rng: random.Random) -> None:
        self.name, self.folder, self.rng = name, folder / name, rng
        self.context = multiprocessing.get_context("forkserver")
        start, whole = time.monotonic(), self.folder / "whole"
        status, writes = self._run(whole, self._counts(whole))
        if status != 0:
            raise SystemExit(f"{name}: the undisturbed run failed")
        self.seconds, self.expected, self.writes = time.monotonic() - start, digests(whole), max(1, writes)

    def run(self, number: int) -> tuple[list[str], str | None]:
        """Kill one calibration on its way; return where kills landed, and what went wrong."""
        output, kills = self.folder / f"killed-{number}", list[str]()
        for _ in range(MOST_KILLS):
            status, _ = self._run(output, self._moment(output))
            if status == 0:
                break
            if status != -signal.SIGKILL:
                return kills, f"a run ended with status {status}"
            if not output.exists():
                kills.append(self._landed(output))
        else:
            if self._run(output, lambda: False)[0] != 0:
                return kills, "the last run failed"
        found = digests(output)
        wrong = [file for file in {**self.expected, **found} if self.expected.get(file) != found.get(file)]
        if wrong or self._partial(output).exists():
            return kills, f"the artifact differs in {', '.join(wrong) or 'what is left beside it'}"
        shutil.rmtree(output)
        return kills, None

    def _run(self, output: Path, now: Callable[[], bool]) -> tuple[int | None, int]:
        """Run a calibration in a process, and kill it when `now` says so; return its status and the writes seen."""
        process = self.context.Process(target=calibrate, args=(self.name, str(output)))
        process.start()
        deadline = time.monotonic() + PATIENCE
        while process.is_alive():
            if now() or time.monotonic() > deadline:
                process.kill()
                break
            time.sleep(POLL)
        process.join()
        return process.exitcode, getattr(now, "seen", 0)

    def _moment(self, output: Path) -> Callable[[], bool]:
        """Return a function that says when to kill."""
        match self.rng.randrange(3):
            case 0:
                end = time.monotonic() + self.rng.uniform(0, self.seconds)
                return lambda: time.monotonic() > end
            case kind:
                seen = self._counts(output)
                wanted = self.rng.randint(1, self.writes)
                return lambda: (seen(), (seen.begun if kind == 1 else seen.seen) >= wanted)[1]

    def _counts(self, output: Path) -> "Writes":
        return Writes(self._partial(output))

    def _partial(self, output: Path) -> Path:
        return output.with_name(output.name + ".partial")

    def _landed(self, output: Path) -> str:
        """Return in words where a killed run was."""
        partial = self._partial(output)
        if not partial.exists():
            return "before the first file"
        if list(partial.glob("*.writing")):
            return "in a write"
        blocks = len(list(partial.glob("elastic-*.safetensors"))) - 1
        return "before the first block" if blocks < 1 else f"behind block {blocks}"


class Writes:
    """Counts the files that are written in a folder: `begun`, and `seen` in their place."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.begun, self.seen = folder, 0, 0
        self._temporary: set[str] = set()
        self._stamps: dict[str, int] = {}

    def __call__(self) -> bool:
        """Look once more; never says that it is time to kill."""
        try:
            entries = [(entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(self.folder)]
        except OSError:  # there is none yet, or a file went while it was looked at
            return False
        temporary = {name for name, _ in entries if name.endswith(".writing")}
        self.begun += len(temporary - self._temporary)
        self._temporary = temporary
        stamps = {name: stamp for name, stamp in entries if name not in temporary}
        self.seen += sum(self._stamps.get(name) != stamp for name, stamp in stamps.items())
        self._stamps = stamps
        return False


def main() -> int:
    """Kill until enough kills have landed; 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills that land, at least (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", nargs="+", help="some of the shipped recipes (default: all)")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["quept.commands", "quept.models.language", "quept.models.vision"])
    starting = context.Process(target=digests, args=(Path(os.devnull),))  # imports once for all
    starting.start()
    starting.join()
    rng, landed, failures, number = random.Random(options.seed), Counter[str](), 0, 0
    folder = Path(tempfile.mkdtemp(prefix="kill-test-"))
    trials = []
    for name in options.recipes or recipes.names():
        trials.append(Trial(name, folder, rng))
        print(f"{name}: {trials[-1].seconds:.1f} s undisturbed", flush=True)
    per_recipe = Counter[str]()
    while landed.total() < options.kills or len(per_recipe) < len(trials):
        trial = trials[number % len(trials)]
        kills, wrong = trial.run(number)
        landed.update(kill.partition(" block")[0] for kill in kills)
        per_recipe.update([trial.name] * len(kills))
        failures += wrong is not None
        print(
            f"{landed.total():>4}/{options.kills}  {trial.name}: {', '.join(kills) or 'none'}: {wrong or 'same bytes'}"
        )
        sys.stdout.flush()
        number += 1
    print("\n".join(f"{count:>6}  {what}" for what, count in sorted((landed + per_recipe).items())))
    print(f"{landed.total()} kills landed in {number} calibrations, {failures} went wrong")
    if failures:
        print(f"the work is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
