"""`quept generate`."""

import copy
from pathlib import Path
from typing import Annotated, Any

import typer

from quept.cli.console import Device, JsonFile, MemoryBudget, Quiet, check_target, out, parse_size, size, write_json
from quept.cli.progress import display
from quept.errors import InvalidInput


def generate(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="An artifact.")],
    prompt: Annotated[str, typer.Option(help="Text to go on from.")],
    bits: Annotated[
        str | None,
        typer.Option(help="The width to run at: 4, w4a8 or w4a4kv4. Default: full precision."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Run by a plan instead, layer by layer; see quept allocate.")
    ] = None,
    kv_bits: Annotated[
        int | None, typer.Option(help="Width at which keys and values are kept, 2 to 8. Default: full precision.")
    ] = None,
    kv_recent: Annotated[
        int, typer.Option(min=0, help="The latest tokens whose keys and values stay in full precision.")
    ] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add at most.")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy; higher is more varied.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the sampling.")] = 0,
    memory_budget: MemoryBudget = None,
    device: Device = "auto",
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Continue a text at one width. The text appears as it is generated.

    With [bold]--kv-bits[/] keys and values are stored packed at that width, and what that saves is told at the end.
    """
    import torch
    from transformers import TextStreamer

    from quept.config import FULL, Precision, PrecisionPlan
    from quept.generation import KeyValueCache, cache_arguments
    from quept.models import architecture_of
    from quept.models.checkpoint import open_tokenizer
    from quept.models.checkpoint import quiet as transformers_quiet
    from quept.precision import key_values, set_precision
    from quept.storage import load

    check_target("--json", json_file)
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
    budget = None if memory_budget is None else parse_size(memory_budget)
    with display(quiet, "opening the model"):
        model = load(directory, planned, device=device, memory_budget=budget)
    if not (task := architecture_of(model.config.model_type).task).keeps_keys_values:
        raise InvalidInput(
            f"{directory} holds a {model.config.model_type} model, which {task.verb} and generates no text; see "
            "quept evaluate."
        )
    set_precision(model, precision)
    tokenizer = open_tokenizer(directory)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    if not inputs["input_ids"].numel():
        raise InvalidInput("The prompt is empty; give some text to go on from.")
    limit = getattr(model.config, "max_position_embeddings", None)
    length = inputs["input_ids"].shape[1]
    if limit is not None and length + max_new_tokens > limit:
        raise InvalidInput(
            f"The prompt has {length} tokens; with {max_new_tokens} new ones that is more than the model's "
            f"{limit}. Shorten the prompt or lower --max-new-tokens."
        )
    torch.manual_seed(seed)
    settings = copy.deepcopy(model.generation_config)  # end tokens and all else that the checkpoint says
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    settings.update(
        max_new_tokens=max_new_tokens,
        max_length=None,
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_p=settings.top_p if temperature > 0 else None,
        top_k=settings.top_k if temperature > 0 else None,
        pad_token_id=settings.pad_token_id if settings.pad_token_id is not None else ends[0],
    )
    streamer = None if quiet or str(json_file) == "-" else TextStreamer(tokenizer, skip_special_tokens=True)
    packed = any(each.bits is not None for each in key_values(model).values())
    cache = KeyValueCache(model, kv_recent) if packed else None
    if cache is not None:
        inputs.update(cache_arguments(cache))
    with torch.inference_mode(), transformers_quiet():
        tokens = model.generate(**inputs, generation_config=settings, streamer=streamer)
    text = tokenizer.decode(tokens[0], skip_special_tokens=True)
    named = str(precision) if plan is None else str(plan)
    report: dict[str, Any] = {"precision": named, "prompt": prompt, "text": text, "tokens": tokens[0].tolist()}
    if cache is not None:
        held, plain = cache.bytes(), cache.bytes_at(torch.bfloat16)
        report["cache"] = {"tokens": cache.get_seq_length(), "bytes": held, "bfloat16_bytes": plain}
        out(quiet, json_file).print(
            f"Keys and values of {cache.get_seq_length():,} tokens take {size(held)}; in bfloat16 {size(plain)}."
        )
    write_json(json_file, report)
