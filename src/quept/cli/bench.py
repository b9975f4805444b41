"""`quept bench`."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from quept.cli.console import (
    JsonFile,
    MemoryBudget,
    Quiet,
    check_plot,
    check_target,
    out,
    parse_size,
    show_table,
    size,
    write_json,
)
from quept.cli.progress import display
from quept.errors import InvalidInput

if TYPE_CHECKING:
    from quept.evaluation.speed import Speed

Threads = Annotated[int | None, typer.Option(min=1, help="Of the processor. Default: as many as PyTorch takes.")]


def bench(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="An artifact of a language model.")],
    bits: Annotated[str | None, typer.Option(help="Precision: 2-8, or 2,4,8, or w4a8. Default: all there are.")] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 128,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode behind it.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Of the prompt; medians count.")] = 3,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of what is not quantized: auto (the checkpoint's), float32, bfloat16.")
    ] = "auto",
    exact: Annotated[
        bool, typer.Option("--exact", help="Multiply activations as they come, not rounded to eight bits on the way.")
    ] = False,
    threads: Threads = None,
    memory_budget: MemoryBudget = None,
    baseline: Annotated[bool, typer.Option(help="Measure the model unquantized, in bfloat16, as well.")] = True,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw speeds by width: .png or .html.")] = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Time an artifact at every width on this processor: prompts, single tokens, and changing the width.

    Single tokens are limited by how fast weights come from memory: the table says how much of the memory's measured
    speed is reached. Other work on the machine makes all figures lower; run it alone.
    """
    import torch

    from quept.cli.opening import choose_dtype
    from quept.config import parse_precisions
    from quept.evaluation.speed import measure_speed
    from quept.models import architecture_of
    from quept.ops import available, describe, read_bandwidth
    from quept.storage import load

    check_target("--json", json_file)
    check_plot("--plot", plot)
    if threads is not None:
        torch.set_num_threads(threads)
    kept = None if dtype == "auto" else choose_dtype(dtype, torch.device("cpu"))
    budget = None if memory_budget is None else parse_size(memory_budget)
    with display(quiet, "opening the model") as shown:
        model = load(directory, dtype=kept, packed=True, exact=exact, memory_budget=budget)
        if not (task := architecture_of(model.config.model_type).task).keeps_keys_values:
            raise InvalidInput(
                f"{directory} holds a {model.config.model_type} model, which {task.verb}; bench is for models "
                "that generate text."
            )
        widths = parse_precisions(bits) if bits else tuple(model.quept_manifest.recipe.bits)
        shown.show("memory", 0, (repeats + tokens) * (len(widths) + baseline))
        settings: dict[str, Any] = {"prompt": prompt, "tokens": tokens, "repeats": repeats, "on_step": shown.advance}
        bandwidth = read_bandwidth() if available() else math.nan
        full: Speed | None = None
        if baseline:
            shown.show("bfloat16")
            plain = load(directory, dtype=torch.bfloat16, packed=False, verify=False)
            full = measure_speed(plain, None, **settings)
            del plain
        speeds = []
        for width in widths:
            shown.show(f"{width} bits")
            speeds.append(measure_speed(model, width, **settings))
    show(speeds, full, bandwidth, f"{directory}, {torch.get_num_threads()} threads", out(quiet, json_file))
    if plot is not None:
        draw(speeds, full, directory, plot)
    report = {
        "directory": directory,
        "threads": torch.get_num_threads(),
        "kernels": describe(),
        "read_bytes_per_second": bandwidth,
        "baseline": None if full is None else asdict(full),
        "widths": [asdict(each) for each in speeds],
    }
    write_json(json_file, report)


def show(speeds: "Sequence[Speed]", full: "Speed | None", bandwidth: float, title: str, console: Console) -> None:
    """The table for people."""

    def row(each: "Speed", name: str) -> tuple[str, ...]:
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
    show_table(console, f"Speed of {title}", columns, rows + [row(each, each.precision) for each in speeds])
    console.print(
        "Tokens of a prompt and single tokens per second; memory: the share of its measured speed that single tokens "
        "reach; derive: making a width's weights; switch: to a width that is resident."
    )
    if not math.isnan(bandwidth):
        console.print(f"Memory is read at up to {bandwidth / 1e9:.1f} GB/s here.")


def draw(speeds: "Sequence[Speed]", full: "Speed | None", title: str, path: Path) -> None:
    """The time of a token by width, as PNG or HTML by the ending of `path`."""
    from quept.plots import Curve, Point, write_plot

    points = tuple(
        Point(int(each.precision), 1e3 / each.decode, None, each.memory_bytes)
        for each in speeds
        if each.precision.isdigit()
    )
    if not points:
        raise InvalidInput("There is nothing to plot: plots are of plain widths (--bits 2-8).")
    baseline = math.nan if full is None else 1e3 / full.decode
    size = None if full is None else full.memory_bytes
    write_plot(Curve(title, "milliseconds per token", baseline, points, size), path)
