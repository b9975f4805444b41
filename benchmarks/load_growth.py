"""How much a process grows by loading and deleting models: an artifact, and a checkpoint as transformers opens it.

    python benchmarks/load_growth.py                      1,000 loads each of the built-in model
    python benchmarks/load_growth.py --artifact DIR       of an artifact of one's own, beside its model's configuration

Each kind runs in a process of its own. Before memory is read, garbage is collected and the C library gives free memory
back (`malloc_trim`). `--passes` lets each artifact run once at two bit-widths before it is deleted.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

import quept
from quept import builtin
from quept.models import architecture_of

WARM_UP = 20
KINDS = {"quept": "quept.load", "passes": "quept.load, two passes", "transformers": "from_pretrained"}


def main() -> None:
    options = arguments()
    if options.kind:
        print(json.dumps(growth(options.kind, options.artifact, options.model, options.loads)))
        return
    table = Table("", "kB per load", "kB in all", "objects in all")
    with tempfile.TemporaryDirectory() as folder:
        artifact = options.artifact or calibrated(Path(folder))
        model = checkpoint(artifact, Path(folder) / "checkpoint")
        for kind, name in KINDS.items():
            if kind == "passes" and not options.passes:
                continue
            found = in_a_process(kind, artifact, model, options.loads)
            print(f"{name}: {found}", flush=True)
            table.add_row(
                name, f"{found['bytes'] / 1000 / options.loads:.2f}", *(f"{found[x]:,}" for x in ("kB", "objects"))
            )
    Console().print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="default: the built-in model, rounded")
    parser.add_argument("--loads", type=int, default=1000)
    parser.add_argument("--passes", action="store_true", help="measure loads with passes, too")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def calibrated(folder: Path) -> Path:
    """Round the built-in model, without training."""
    data = builtin.calibration_text_path()
    quept.calibrate(builtin.model_path(), folder / "artifact", data=data, samples=8, sequence_length=64, epochs=0)
    return folder / "artifact"


def checkpoint(artifact: Path, target: Path) -> Path:
    """Write a checkpoint of random weights with the configuration of an artifact's model."""
    config = AutoConfig.from_pretrained(artifact)
    architecture_of(config.model_type).task.model_class.from_config(config).save_pretrained(target)
    return target


def in_a_process(kind: str, artifact: Path, model: Path, loads: int) -> dict[str, int]:
    """Return the growth of a process of its own."""
    settings = {"--kind": kind, "--artifact": artifact, "--model": model, "--loads": loads}
    command = [sys.executable, __file__, *(str(each) for item in settings.items() for each in item)]
    found: dict[str, int] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def growth(kind: str, artifact: Path, model: Path, loads: int) -> dict[str, int]:
    """Return how many bytes and objects the process grows by in all loads after the first ones."""
    transformers.utils.logging.disable_progress_bar()
    auto = architecture_of(AutoConfig.from_pretrained(model).model_type).task.model_class

    def run() -> None:
        loaded, tokens = quept.load(artifact), torch.arange(16).view(1, 16)
        with torch.inference_mode():
            for bits in (2, 4):
                quept.set_precision(loaded, bits)
                loaded(tokens)

    once: dict[str, Callable[[], object]] = {
        "quept": lambda: quept.load(artifact),
        "passes": run,
        "transformers": lambda: auto.from_pretrained(model),
    }
    for _ in range(WARM_UP):
        once[kind]()
    before, objects = resident_bytes(), objects_by_type()
    for _ in range(loads):
        once[kind]()
    grown = resident_bytes() - before
    return {"bytes": grown, "kB": grown // 1000, "objects": (objects_by_type() - objects).total()}


def resident_bytes() -> int:
    """Return the memory of this process, without what is free in it (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def objects_by_type() -> Counter[str]:
    """Return the number of objects that the garbage collector knows, by type."""
    gc.collect()
    return Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())


if __name__ == "__main__":
    main()
