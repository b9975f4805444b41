"""The quantized key-value cache: its memory, and the time of decoding with it, beside transformers' own cache.

    python benchmarks/cache.py
    python benchmarks/cache.py --tokens 2000 --hidden-size 384 --heads 6 --key-value-heads 3 --layers 6

On a LLaMA with random weights, which is enough for memory and time. It computes in float32; memory is compared with
that of a plain cache in bfloat16. Caches take turns, one token each, after the same prefill; ratios are of medians.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from quept import KeyValueCache, load_recipe, set_precision
from quept.assembly import make_elastic
from quept.generation import cache_arguments


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2000, help="in the cache (default: %(default)s)")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 8])
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--key-value-heads", type=int, default=8)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30, help="tokens decoded with each (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def step(model: Any, cache: Any, precision: str | None, token: torch.Tensor) -> float:
    """Milliseconds of one token."""
    set_precision(model, "kv16" if precision is None else precision)
    started = time.perf_counter()
    model(input_ids=token, **cache_arguments(cache), use_cache=True)
    return 1000 * (time.perf_counter() - started)


@torch.inference_mode()
def main() -> None:
    options = arguments()
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=options.hidden_size,
        intermediate_size=4 * options.hidden_size,
        num_attention_heads=options.heads,
        num_key_value_heads=options.key_value_heads,
        num_hidden_layers=options.layers,
        max_position_embeddings=options.tokens + options.steps + 8,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    make_elastic(model, load_recipe("best"))
    prompt = torch.randint(config.vocab_size, (1, options.tokens))
    caches: dict[str | None, Any] = {None: DynamicCache(config=config)}
    for bits in options.bits:
        caches[f"kv{bits}"] = KeyValueCache(model)
    shares = {}
    for precision, cache in caches.items():
        step(model, cache, precision, prompt)
        if precision is not None:
            shares[precision] = cache.bytes() / cache.bytes_at(torch.bfloat16)
    times: dict[str | None, list[float]] = {precision: [] for precision in caches}
    for _ in range(options.steps):
        for precision, cache in caches.items():
            times[precision].append(step(model, cache, precision, prompt[:, :1]))
    table = Table(title=f"{options.tokens:,} tokens, heads of {config.head_dim}", title_justify="left")
    for heading in ("cache", "of bfloat16's bytes", "ms per token (quartiles)", "of the plain cache's time"):
        table.add_column(heading, justify="right")
    rows = []
    for precision, taken in times.items():
        low, _, high = quantiles(taken, n=4)
        ratio = median(taken) / median(times[None])
        share = shares.get(precision)
        rows.append({"cache": precision or "plain", "share": share, "ms": taken, "ratio": ratio})
        table.add_row(
            precision or "plain",
            "-" if share is None else f"{share:.3f}",
            f"{median(taken):.1f} ({low:.1f} to {high:.1f})",
            f"{ratio:.2f}",
        )
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
