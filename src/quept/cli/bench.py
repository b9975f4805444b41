"""`quept bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from quept.cli.console import check_plot, check_target, out, parse_size, write_json
from quept.cli.options import JsonFile, MemoryBudget, Precisions, Quiet
from quept.cli.progress import display

Threads = Annotated[int | None, typer.Option(min=1, help="Of the processor. Default: as many as PyTorch takes.")]


def bench(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="An artifact of a language model.")],
    bits: Precisions = None,
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
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw speeds by bits: .png or .html.")] = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Time an artifact at every bit-width on this processor: prompts, single tokens, and switching.

    Single tokens are limited by how fast weights come from memory: the table says how much of the memory's measured
    speed is reached. Other work on the machine makes all figures lower; run it alone.
    """
    check_target("--json", json_file)
    check_plot("--plot", plot)
    budget = parse_size(memory_budget)
    from quept import commands
    from quept.cli.tables.speed import show

    work = commands.Workload(prompt, tokens, repeats)
    how: dict[str, Any] = {
        "dtype": dtype,
        "exact": exact,
        "threads": threads,
        "memory_budget": budget,
        "baseline": baseline,
    }
    with display(quiet, "opening the model") as shown:
        found = commands.bench(directory, bits=bits, workload=work, progress=shown.show, **how)
    show(found, out(quiet, json_file))
    if plot is not None:
        from quept.cli.drawings import curve
        from quept.plots import write_plot

        write_plot(curve(found, directory), plot)
    write_json(json_file, found.to_json())
