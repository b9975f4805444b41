"""Damage a small store in many ways, load what is left, and see that nothing but a refusal or the truth comes out.

    python scripts/fuzz_store.py --files 10000
    python scripts/fuzz_store.py --files 200 --seed 7 --first 4000     (again, from a number that failed)

Every number makes one damaged store: bytes flipped, zeroed, cut, added or moved in a shard, in the manifest or in a
configuration; headers whose offsets, shapes, dtypes or names are changed; values that no store has; JSON with entries
removed, doubled or replaced. Half of them get their checksums made anew, as a forger would. Each is loaded with
verification in a process of its own, so that a crash or a hang is seen.

Allowed are: a refusal in one line; the codes of the original at every width; and, where checksums were made anew,
finite logits. Exits with 1 where anything else happened, and says which number did it.
"""

import argparse
import json
import multiprocessing
import random
import shutil
import signal
import struct
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import LlamaConfig, LlamaForCausalLM

import quept
from quept.errors import CorruptArtifact, InvalidInput
from quept.precision import elastic_linears, set_precision
from quept.storage.manifest import MANIFEST, record_files, sealed

SECONDS = 20  # of a processor, after which a load counts as hanging
PATIENCE = 300  # seconds on the clock, importing and a busy machine included
TOKENS = torch.arange(12).unsqueeze(0)
WORDS = [
    "",
    "x" * 5000,
    "I8",
    "F64",
    "BOOL",
    "F8_E4M3",
    "float32",
    "\u0000",
    "../../etc/passwd",
    "llama",
    "gpt2",
    "NaN",
]
DTYPES = ["I8", "U8", "BF16", "F16", "F32", "F64", "I64", "BOOL", *WORDS]
NUMBERS = [-1, 0, 1, 2, 3, 7, 127, 255, 2**31, 2**63, 2**64, 10**30, -(2**63), 0.5, 1e308, float("nan"), float("inf")]


def make_store(directory: Path) -> None:
    """A small store with all that a store can have: planes, adapters, groups with a rest, smoothed columns."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=44,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=64,
    )
    recipe = quept.load_recipe("best")
    recipe = recipe.updated(
        granularity=recipe.granularity.updated(group_size=16),
        adapter=recipe.adapter.updated(rank=2),
        smoothing=recipe.smoothing.updated(enabled=True, grid=2),
        reconstruction=recipe.reconstruction.updated(epochs=1, last_block_loss=None, label_weight=0.0),
        store=recipe.store.updated(group_size=12),
    )
    quept.calibrate(LlamaForCausalLM(config), directory, data=torch.randint(64, (8, 24)), recipe=recipe)


# Damage: each takes bytes and returns others.


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 1, 2, 8, 100])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_early(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 2, 4])):
        data[rng.randrange(min(len(data), rng.choice([8, 64, 4000])))] = rng.randrange(256)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.choice([0, 1, 7, 8, 9, rng.randrange(len(data)), len(data) - 1]) :]


def extend(data: bytearray, rng: random.Random) -> None:
    data += rng.randbytes(rng.choice([1, 8, 1000, 100_000]))


def splice(data: bytearray, rng: random.Random) -> None:
    start, size = rng.randrange(len(data)), rng.choice([1, 4, 64, 1000])
    part = bytes(data[start : start + size])
    target = rng.randrange(len(data))
    data[target : target + rng.choice([0, size])] = part


def blank(data: bytearray, rng: random.Random) -> None:
    start, size = rng.randrange(len(data)), rng.choice([1, 2, 4, 64, 1000])
    data[start : start + size] = bytes([rng.choice([0, 255, 128])]) * len(data[start : start + size])


def remove(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice([1, 2, 8, 500])]


def header_length(data: bytearray, rng: random.Random) -> None:
    (length,) = struct.unpack("<Q", data[:8])
    choices = [0, 1, length - 1, length + 1, length + 8, len(data), len(data) - 8, 10**8, 2**31, 2**63, 2**64 - 1]
    data[:8] = struct.pack("<Q", rng.choice(choices))


def header(data: bytearray, rng: random.Random) -> None:
    """One entry or more of a safetensors header."""
    (length,) = struct.unpack("<Q", data[:8])
    entries: dict[str, Any] = json.loads(data[8 : 8 + length])
    for _ in range(rng.choice([1, 1, 2, 5])):
        names = [name for name in entries if name != "__metadata__"]
        if len(names) > 1:
            _change_entry(entries, rng.choice(names), rng.choice(names), rng)
    text = json.dumps(entries, separators=(",", ":"))
    if rng.random() < 0.1:
        name = json.dumps(rng.choice(list(entries)))
        text = f'{{{name}:{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}},' + text[1:]  # a name that stands twice
    encoded = text.encode("utf-8", "surrogatepass")
    encoded += b" " * (-len(encoded) % 8)
    data[: 8 + length] = struct.pack("<Q", len(encoded)) + encoded


def _change_entry(entries: dict[str, Any], name: str, other: str, rng: random.Random) -> None:
    entry = entries[name]
    numbers = [[0, 2**63], [2**64, 0], [-4, 4], [5, 1], [0, 0], [0], None]
    shapes = [[], [2**32, 2**32], [-1], [0], [0.5], "x", None]
    if rng.random() < 0.5:
        key, pool = rng.choice([("dtype", DTYPES), ("data_offsets", numbers), ("shape", shapes), ("more", [1])])
        entry[key] = rng.choice(pool)
        return
    match rng.randrange(6):
        case 0:
            entry["data_offsets"] = entries[other]["data_offsets"]
        case 1:
            entries[rng.choice([other, "extra", *WORDS])] = entries.pop(name)
        case 2:
            del entries[name]
        case 3:
            entries[name], entries[other] = entries[other], entries[name]
        case 4:
            entries["__metadata__"] = rng.choice([{"a": "b"}, {"quept": "[]"}, {"a": 1}, [], "x", {"a": "b" * 9999}])
        case _ if isinstance(entry["shape"], list):
            entry["shape"] = [size + rng.choice([-1, 1]) for size in entry["shape"]][:: rng.choice([-1, 1])]


def values(data: bytearray, rng: random.Random) -> None:
    """Numbers of a tensor that no store has: NaN, infinities, zeros, denormals, the largest and negative ones."""
    (length,) = struct.unpack("<Q", data[:8])
    entries: dict[str, Any] = json.loads(data[8 : 8 + length])
    floats = {"BF16": 2, "F32": 4}
    wanted = [e for n, e in entries.items() if n != "__metadata__" and e["data_offsets"][0] < e["data_offsets"][1]]
    scales = [e for n, e in entries.items() if n.endswith("scale") or "norm" in n]
    entry = rng.choice(rng.choice([wanted, scales or wanted]))
    start, end = (8 + length + offset for offset in entry["data_offsets"])
    size = floats.get(entry["dtype"], 1)
    pool = {
        1: [0, 1, 0x7F, 0x80, 0x81, 0xFF],
        2: [0, 1, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0x7F7F, 0xFF7F, 0x0040, 0xBF80],
        4: [0, 1, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 0xFF7FFFFF, 0x00400000, 0xBF800000],
    }[size]
    word = rng.choice(pool).to_bytes(size, "little")
    count = (end - start) // size
    many = rng.random() < 0.3
    for index in range(count) if many else [rng.randrange(count)]:
        data[start + index * size : start + (index + 1) * size] = word


def structure(data: bytearray, rng: random.Random) -> None:
    """Entries of a JSON file."""
    content = json.loads(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        places = list(_places(content))
        if not places:
            break
        owner, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del owner[key]
            case 1:
                owner[key] = rng.choice(NUMBERS)
            case 2:
                owner[key] = rng.choice(WORDS)
            case 3:
                owner[key] = rng.choice([None, True, False, [], {}, [[]], {"a": 1}])
            case 4:
                owner[key] = _nudged(owner[key], rng)
            case _:
                if isinstance(owner, dict):
                    owner[rng.choice(["extra", "auto_map", "quantization_config", "torch_dtype", "dtype"])] = owner[key]
    text = json.dumps(content)
    if rng.random() < 0.1:
        text = text[:-1] + ', "version": 2, "hidden_size": 32}'  # names that stand twice
    data[:] = text.encode("utf-8", "surrogatepass")


def _nudged(value: Any, rng: random.Random) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + rng.choice([-1, 1, value])
        case str() if value:
            place = rng.randrange(len(value))
            return value[:place] + chr(rng.randrange(32, 127)) + value[place + 1 :]
        case list():
            return value[::-1] if rng.random() < 0.5 else value + value
        case _:
            return [value]


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield content, key
        yield from _places(value)


ANY: list[Callable[[bytearray, random.Random], None]] = [flip, flip_early, cut, extend, splice, blank, remove]
SHARDS = [*ANY, header_length, header, header, header, values, values, values]
JSONS = [*ANY, structure, structure, structure, structure]


def damaged(source: Path, target: Path, number: int, seed: int) -> tuple[str, bool]:
    """Write the damaged store of a number to `target`; what was done to it, and whether checksums fit."""
    rng = random.Random(f"{seed}/{number}")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    names = sorted(path.name for path in source.iterdir())
    shards = [name for name in names if name.endswith(".safetensors")]
    name = rng.choice(shards if rng.random() < 0.6 else [n for n in names if n.endswith(".json")])
    change = rng.choice(SHARDS if name in shards else JSONS)
    data = bytearray((target / name).read_bytes())
    change(data, rng)
    (target / name).write_bytes(data)
    made_anew = rng.random() < 0.5 and _make_checksums(target)
    return f"{change.__name__} in {name}{', checksums made anew' if made_anew else ''}", made_anew


def _make_checksums(target: Path) -> bool:
    path = target / MANIFEST
    try:
        data = json.loads(path.read_bytes())
        data["files"] = {name: record.model_dump() for name, record in record_files(target).items()}
        path.write_text(json.dumps(sealed(data)), encoding="utf-8")
    except (ValueError, TypeError, AttributeError, RecursionError):
        return False
    return True


# Loading, in another process.


def truth(model: Any) -> dict[str, torch.Tensor]:
    """All tensors of a model, and its linears' codes and scales at every width."""
    found = dict(model.state_dict())
    for path, layer in elastic_linears(model).items():
        for bits in layer.spec.groups.bits:
            if not layer.has_codes(bits):
                continue
            codes, grid = layer.codes(bits)
            found |= {f"{path}/{bits}": codes, f"{path}/{bits}/s": grid.scale, f"{path}/{bits}/z": grid.zero_point}
    return found


def outcome(directory: Path, original: dict[str, torch.Tensor], forged: bool) -> tuple[bool, str]:
    """Whether what happens is allowed, and what it was."""
    try:
        model = quept.load(directory)
    except (CorruptArtifact, InvalidInput) as error:
        text = str(error)
        return ("\n" not in text and len(text) < 4000), f"refused: {text[:300]}" if "\n" not in text else repr(text)
    found = truth(model)
    if found.keys() == original.keys() and all(torch.equal(found[name], original[name]) for name in original):
        return True, "harmless"
    if not forged:
        return False, "loaded as something else"
    tokens = TOKENS % model.config.vocab_size
    for bits in (None, *model.quept_manifest.recipe.bits):
        set_precision(model, bits)
        if not bool(torch.isfinite(model(tokens).logits).all()):
            return False, f"logits are not finite at {bits or 'full precision'}"
    return True, "forged: loaded, with finite logits"


class _Hangs(BaseException):
    pass


def _alarm(signum: int, frame: object) -> None:
    raise _Hangs


def work(source: str, folder: str, seed: int, link: Connection) -> None:
    """Answer numbers with what happened to their stores until the parent hangs up."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, _alarm)
    original = truth(quept.load(source))
    while True:
        try:
            number = link.recv()
        except EOFError:
            return
        done, forged = damaged(Path(source), Path(folder) / "damaged", number, seed)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            with torch.inference_mode():
                allowed, what = outcome(Path(folder) / "damaged", original, forged)
        except _Hangs:
            allowed, what = False, f"no answer within {SECONDS} seconds"
        except Exception as error:
            allowed, what = False, f"{type(error).__name__}: {str(error)[:500]}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        link.send((allowed, what, done))


def fuzz(source: Path, numbers: range, seed: int, report: Callable[[int, bool, str, str], None]) -> None:
    """Try all numbers; `report` is told the number, whether it was allowed, what happened and what was done."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        worker: Any = None
        link: Any = None
        for number in numbers:
            if worker is None:
                link, far = context.Pipe()
                worker = context.Process(target=work, args=(str(source), folder, seed, far), daemon=True)
                worker.start()
                far.close()
            link.send(number)
            answered = link.poll(PATIENCE)
            try:
                result = link.recv() if answered else (False, "the process hangs", "")
            except EOFError:
                worker.join()
                result = (False, f"the process died with {worker.exitcode}", "")
                answered = False
            if not answered:
                worker.kill()
                worker = None
            report(number, *result)
        if worker is not None:
            link.close()
            worker.join(10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="how many stores (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first number (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, metavar="DIR", help="the store to damage (default: a small one is made)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args()
    console, outcomes, failures = Console(width=160), Counter[str](), []
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, disable=options.quiet) as progress:
        source = options.store
        if source is None:
            source = Path(folder) / "store"
            make_store(source)
        task = progress.add_task("stores", total=options.files)

        def report(number: int, allowed: bool, what: str, done: str) -> None:
            progress.advance(task)
            outcomes[what.partition(":")[0] if allowed else "NOT ALLOWED"] += 1
            if not allowed:
                failures.append(number)
                console.print(f"{number}: {done}: {what}", markup=False, highlight=False)

        fuzz(source, range(options.first, options.first + options.files), options.seed, report)
    for what, count in sorted(outcomes.items()):
        console.print(f"{count:>8,}  {what}", highlight=False)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
