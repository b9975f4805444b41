"""`quept generate`."""

from typing import Annotated

import typer

from quept.cli.console import check_target, out, parse_size, size, write_json
from quept.cli.options import ArtifactDir, Device, JsonFile, KvRecent, MemoryBudget, Quiet, RunBits, RunKvBits, RunPlan
from quept.cli.progress import display
from quept.errors import InvalidInput


def generate(
    directory: ArtifactDir,
    prompt: Annotated[str, typer.Option(help="Text to go on from.")],
    bits: RunBits = None,
    plan: RunPlan = None,
    kv_bits: RunKvBits = None,
    kv_recent: KvRecent = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add at most.")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy; higher is more varied.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the sampling.")] = 0,
    memory_budget: MemoryBudget = None,
    device: Device = "auto",
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Continue a text at one precision. The text appears as it is generated.

    With [bold]--kv-bits[/] keys and values are stored packed at that bit-width, and what that saves is told at the end.
    """
    check_target("--json", json_file)
    from quept import commands
    from quept.config import FULL, Precision, PrecisionPlan

    if not prompt.isprintable() and any("\ud800" <= character <= "\udfff" for character in prompt):
        raise InvalidInput("The prompt is not valid text in this terminal's encoding; give UTF-8.")
    if plan is not None and bits is not None:
        raise InvalidInput("--bits and --plan both say what to run at; give one of the two.")
    precision = (Precision() if plan is not None else Precision.parse(bits)).with_keys_values(kv_bits)
    if kv_recent and plan is None and precision.keys_values in (None, FULL):
        raise InvalidInput(
            "--kv-recent leaves some of what --kv-bits rounds in full precision; give --kv-bits as well."
        )
    planned = None if plan is None else PrecisionPlan.read(plan)
    budget = parse_size(memory_budget)
    with display(quiet, "opening the model"):
        model, tokenizer = commands.open_generator(directory, planned, device=device, memory_budget=budget)
    result = commands.generate(
        model,
        prompt,
        precision,
        tokenizer=tokenizer,
        kv_recent=kv_recent,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        on_text=None if quiet or str(json_file) == "-" else lambda text: print(text, end="", flush=True),
    )
    if result.cache is not None:
        cache = result.cache
        out(quiet, json_file).print(
            f"Keys and values of {cache.tokens:,} tokens take {size(cache.bytes)}; in bfloat16 "
            f"{size(cache.bfloat16_bytes)}."
        )
    write_json(json_file, {"precision": str(precision if plan is None else plan), **result.to_json()})
