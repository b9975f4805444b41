"""The table of `quept bench`."""

import math

from rich.console import Console

from quept.cli.console import show_table, size
from quept.commands.bench import Benchmark
from quept.evaluation.speed import Speed


def show(found: Benchmark, console: Console) -> None:
    """Print the speed at each precision beside bfloat16 and beside the memory's."""
    full, bandwidth = found.baseline, found.read_bytes_per_second

    def row(each: Speed, name: str) -> tuple[str, ...]:
        return (
            name,
            f"{each.prefill:.0f}",
            "-" if full is None else f"{each.prefill / full.prefill:.2f}",
            f"{each.decode:.1f}",
            "-" if full is None else f"{each.decode / full.decode:.2f}",
            "-" if math.isnan(bandwidth) else f"{each.bytes_per_second / bandwidth:.0%}",
            size(each.memory_bytes),
            f"{each.derive_seconds:.2f} s",
            f"{each.switch_seconds * 1e3:.2f} ms",
        )

    columns = ("bits", "prompt/s", "x bf16", "token/s", "x bf16", "memory", "weights", "derive", "switch")
    rows = [] if full is None else [row(full, "bf16")]
    heading = f"Speed of {found.directory}, {found.threads} threads"
    show_table(console, heading, columns, rows + [row(each, each.precision) for each in found.results])
    console.print(
        "Tokens of a prompt and single tokens per second; memory: the share of its measured speed that single tokens "
        "reach; derive: making the weights of a bit-width; switch: to one whose weights are resident."
    )
    if not math.isnan(bandwidth):
        console.print(f"Memory is read at up to {bandwidth / 1e9:.1f} GB/s here.")
