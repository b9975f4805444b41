"""Products of one token with packed weights, against PyTorch's and llama.cpp's, and how fast codes are rebuilt.

    python benchmarks/kernels.py                        4096 x 4096 and 11008 x 4096, all widths, two threads
    python benchmarks/kernels.py --threads 1 --tokens 4 --shapes 4096x11008 --json FILE
    python benchmarks/kernels.py --ggml FOLDER          where libggml-base.so and libggml-cpu.so are

Every contender cycles through matrices that together are larger than the caches, so that weights come from memory, as
they do while a model generates. All take turns, pass by pass, and the fastest pass counts: whatever else the machine
does only ever adds. "of bandwidth" is what a pass read of its weights (codes, scales, zero points) by the time it took,
as a share of the machine's read bandwidth, which native code measures on as many threads in the same turns.

llama.cpp's kernels are ggml's `MUL_MAT` on one graph of all matrices. They come with `pip install llama-cpp-python`,
or from a folder given; without them these rows are left out, and it is said why. Its types store more than their name
says: the column "bits" counts everything.
"""

import argparse
import ctypes
import importlib.util
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quept import ops
from quept.formats import packing, tiles
from quept.formats.packed import PackedWeight
from quept.formats.paging import empty_bytes
from quept.formats.stored import StoredWeight
from quept.ops import packed_linear, rebuild

WIDTHS = range(2, 9)
GROUP = 128
# ggml's types by the width they are compared with, and their numbers in ggml.h.
GGML = {2: ("Q2_K", 10), 3: ("Q3_K", 11), 4: ("Q4_0", 2), 5: ("Q5_0", 6), 6: ("Q6_K", 14), 8: ("Q8_0", 8)}


class Contender:
    """One way to multiply: a pass over all its matrices, and how many bytes and matrices that is."""

    def __init__(self, name: str, width: int | None, run: Callable[[], None], size: int, count: int) -> None:
        self.name, self.width, self.run, self.size, self.count = name, width, run, size, count
        self.best = float("inf")

    def take_turn(self) -> None:
        start = time.perf_counter()
        self.run()
        self.best = min(self.best, (time.perf_counter() - start) / self.count)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["4096x4096", "11008x4096"], help="OUTxIN of the matrices")
    parser.add_argument("--threads", type=int, default=2, help="of every contender (2)")
    parser.add_argument("--tokens", type=int, default=1, help="tokens of a product (1)")
    parser.add_argument("--repeats", type=int, default=20, help="passes of each contender (20)")
    parser.add_argument("--megabytes", type=int, default=256, help="of the matrices that one pass reads (256)")
    parser.add_argument("--ggml", type=Path, help="folder with ggml's libraries, instead of llama_cpp's")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    return parser.parse_args()


def packed_weights(pool: Tensor, shape: tuple[int, int], bits: int, inputs_per_scale: int) -> list[PackedWeight]:
    """Weights whose codes are the pool's bytes, one behind the other."""
    rows, columns = shape
    size, groups = rows * tiles.bytes_per_row(columns, bits), -(-columns // inputs_per_scale)
    row_scale, zero_point = torch.full((rows,), 1e-3), torch.randint(0, 2**bits, (rows, groups), dtype=torch.uint8)
    weights = []
    for start in range(0, len(pool) - size + 1, size):
        codes = pool[start : start + size].view(rows, -1)
        scale = None if groups == 1 else torch.rand(rows, groups).to(torch.float16)
        weights.append(PackedWeight(shape, bits, inputs_per_scale, codes, scale, row_scale, zero_point.clone()))
    return weights


def quept_contenders(pool: Tensor, shape: tuple[int, int], x: Tensor) -> list[Contender]:
    def run(weights: list[PackedWeight]) -> None:
        for weight in weights:
            packed_linear(x, weight)

    found = []
    for label, inputs_per_scale in ((f"groups of {GROUP}", GROUP), ("rows", shape[1])):
        for bits in WIDTHS:
            weights = packed_weights(pool, shape, bits, inputs_per_scale)
            size = sum(weight.nbytes for weight in weights)
            name = f"quept, {label}"
            found.append(Contender(name, bits, partial(run, weights), size, len(weights)))
    return found


def torch_contenders(megabytes: int, shape: tuple[int, int], x: Tensor) -> list[Contender]:
    def run(x: Tensor, weights: list[Tensor]) -> None:
        for weight in weights:
            F.linear(x, weight)

    found = []
    for dtype in (torch.float32, torch.bfloat16):
        count = max(1, megabytes * 2**20 // (shape[0] * shape[1] * dtype.itemsize))
        weights = [torch.full(shape, 1e-3, dtype=dtype) for _ in range(count)]
        name = f"PyTorch, {str(dtype).removeprefix('torch.')}"
        found.append(Contender(name, None, partial(run, x.to(dtype), weights), count * weights[0].nbytes, count))
    return found


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Ggml:
    """ggml's two libraries, by ctypes."""

    def __init__(self, folder: Path) -> None:
        self.base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
        self.cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), mode=ctypes.RTLD_GLOBAL)
        pointer, number, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
        for name, result, arguments in (
            ("ggml_init", pointer, [InitParams]),
            ("ggml_free", None, [pointer]),
            ("ggml_new_tensor_2d", pointer, [pointer, ctypes.c_int, number, number]),
            ("ggml_get_data", pointer, [pointer]),
            ("ggml_mul_mat", pointer, [pointer, pointer, pointer]),
            ("ggml_new_graph", pointer, [pointer]),
            ("ggml_build_forward_expand", None, [pointer, pointer]),
            ("ggml_row_size", size, [ctypes.c_int, number]),
            ("ggml_quantize_chunk", size, [ctypes.c_int, pointer, pointer, number, number, number, pointer]),
        ):
            function = getattr(self.base, name)
            function.restype, function.argtypes = result, arguments
        self.cpu.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, ctypes.c_int]
        self.cpu.ggml_cpu_init()

    def contender(self, width: int, megabytes: int, shape: tuple[int, int], x: Tensor, threads: int) -> Contender:
        (name, kind), (rows, columns) = GGML[width], shape
        size = rows * int(self.base.ggml_row_size(kind, columns))
        count = max(1, megabytes * 2**20 // size)
        context = self.base.ggml_init(InitParams(count * (size + rows * len(x) * 4) + 2**26, None, False))
        token = self.base.ggml_new_tensor_2d(context, 0, columns, len(x))
        ctypes.memmove(self.base.ggml_get_data(token), x.contiguous().data_ptr(), x.nbytes)
        graph, some = self.base.ggml_new_graph(context), torch.randn(64, columns)
        for _ in range(count):
            weight = self.base.ggml_new_tensor_2d(context, kind, columns, rows)
            data = self.base.ggml_get_data(weight)
            part = self.base.ggml_quantize_chunk(kind, some.data_ptr(), data, 0, len(some), columns, None)
            for start in range(part, size - part + 1, part):
                ctypes.memmove(data + start, data, part)
            self.base.ggml_build_forward_expand(graph, self.base.ggml_mul_mat(context, weight, token))

        def run() -> None:
            self.cpu.ggml_graph_compute_with_ctx(context, graph, threads)

        return Contender(f"llama.cpp, {name}", width, run, size * count, count)


def ggml_folder(given: Path | None) -> tuple[Path | None, str]:
    """Where ggml's libraries are, or why they are not used."""
    if given is not None:
        return given, ""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None, "llama_cpp is not installed (pip install llama-cpp-python)"
    return Path(spec.origin).parent / "lib", ""


def rebuild_speeds(repeats: int) -> dict[int, float]:
    """Weights per second of codes rebuilt at each width, with an adapter of rank 16 and a rounding plane."""
    rows, columns, rank = 2048, 4096, 16
    signed = partial(torch.randint, -127, 128, dtype=torch.int8)
    store = StoredWeight(
        signed((rows, columns)),
        torch.rand(rows, columns // GROUP).bfloat16(),
        GROUP,
        *(signed((rows, rank)), signed((rank, columns)), torch.full((rows,), 1e-5)),
        clip_ratios=torch.full((2, rows, columns // GROUP), 200, dtype=torch.uint8),
        mask=packing.pack((torch.rand(rows, columns) < 0.3).to(torch.uint8), 1),
    )
    speeds = dict.fromkeys(WIDTHS, 0.0)
    for _ in range(repeats):
        for bits in WIDTHS:
            start = time.perf_counter()
            rebuild(store, bits, GROUP, False)
            speeds[bits] = max(speeds[bits], rows * columns / (time.perf_counter() - start))
    return speeds


def measure(arguments: argparse.Namespace, shape: tuple[int, int], pool: Tensor, ggml: Ggml | None) -> dict[str, Any]:
    x = torch.randn(arguments.tokens, shape[1])
    contenders = quept_contenders(pool, shape, x) + torch_contenders(arguments.megabytes, shape, x)
    if ggml is not None:
        made = (ggml.contender(width, arguments.megabytes, shape, x, arguments.threads) for width in GGML)
        contenders += made
    bandwidth = 0.0
    for _ in range(arguments.repeats):
        bandwidth = max(bandwidth, ops.read_bandwidth(2**28, 1))
        for contender in contenders:
            contender.take_turn()
    weights = shape[0] * shape[1]
    fastest_torch = min(each.best for each in contenders if each.width is None)
    rows = [
        {
            "name": each.name,
            "width": each.width,
            "bits": each.size * 8 / each.count / weights,
            "milliseconds": each.best * 1e3,
            "gigaweights": weights / each.best / 1e9,
            "bandwidth": each.size / each.count / each.best / bandwidth,
            "speedup": fastest_torch / each.best,
        }
        for each in contenders
    ]
    return {"shape": shape, "read_bandwidth": bandwidth, "rows": rows}


def show(found: dict[str, Any], threads: int, tokens: int) -> None:
    rows = found["rows"]
    ggml = {row["width"]: row for row in rows if row["name"].startswith("llama.cpp")}
    print(
        f"\n{found['shape'][0]} x {found['shape'][1]}, {tokens} token(s), {threads} thread(s), memory read at "
        f"{found['read_bandwidth'] / 1e9:.1f} GB/s\n"
    )
    print("| | width | bits | ms | Gweights/s | of bandwidth | by PyTorch's fastest | by llama.cpp's |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        other = ggml.get(row["width"])
        by = f"{row['gigaweights'] / other['gigaweights']:.2f}" if other and row is not other else ""
        print(
            f"| {row['name']} | {row['width'] or ''} | {row['bits']:.2f} | {row['milliseconds']:.3f} | "
            f"{row['gigaweights']:.1f} | {row['bandwidth']:.0%} | {row['speedup']:.2f} | {by} |"
        )


@torch.inference_mode()
def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    print(ops.describe())
    folder, why = ggml_folder(arguments.ggml)
    if why:
        print(f"Without llama.cpp: {why}.")
    ggml = None if folder is None else Ggml(folder)
    words = torch.randint(-(2**63), 2**63 - 1, (1, arguments.megabytes * 2**17))
    pool = empty_bytes(1, arguments.megabytes * 2**20).copy_(words.view(torch.uint8)).flatten()  # as weights lie
    results = []
    for each in arguments.shapes:
        rows, columns = (int(size) for size in each.split("x"))
        results.append(measure(arguments, (rows, columns), pool, ggml))
        show(results[-1], arguments.threads, arguments.tokens)
    speeds = rebuild_speeds(max(3, arguments.repeats // 4))
    print("\nRebuilt, Gweights/s: " + ", ".join(f"{bits} bits {speed / 1e9:.2f}" for bits, speed in speeds.items()))
    if arguments.json:
        settings = {"threads": arguments.threads, "tokens": arguments.tokens, "kernels": ops.describe()}
        arguments.json.write_text(json.dumps({**settings, "products": results, "rebuilt": speeds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
