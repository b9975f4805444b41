"""What packed weights change of the predictions: with float activations, and rounded to eight bits as in decoding.

    python benchmarks/packed.py --artifact DIR --test TEXT

For each width three models: the simulation (dense weights), packed weights with activations as they come, and with
activations rounded on the way. Tokens run in pieces so small that they count as few, as when they are generated, with
a cache; all three run the same pieces. "Logits" is the largest difference to the simulation, over its largest logit.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import quept
from quept.data import token_stream
from quept.generation import cache_arguments, cache_of
from quept.models.checkpoint import open_tokenizer
from quept.ops.cpu.packed import FEW

WINDOWS = 8  # side by side


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", required=True)
    parser.add_argument("--test", required=True, help="text to measure perplexity on")
    parser.add_argument("--tokens", type=int, default=25600, help="default: %(default)s")
    parser.add_argument("--sequence-length", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


@torch.inference_mode()
def predictions(model: Any, ids: Tensor) -> Tensor:
    """The logits of windows `(windows, tokens)`, a few tokens at a time."""
    cache, found = None, []
    for piece in ids.split(FEW // len(ids), dim=1):
        result = model(piece, **cache_arguments(cache), use_cache=True)
        cache = cache_of(result)
        found.append(result.logits.float())
    return torch.cat(found, dim=1)


def loss(logits: Tensor, ids: Tensor) -> float:
    """The sum of nats per prediction."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()


def main() -> None:
    options = arguments()
    tokens = token_stream(options.test, open_tokenizer(options.artifact), max_tokens=options.tokens)
    count = len(tokens) // options.sequence_length // WINDOWS * WINDOWS
    windows = tokens[: count * options.sequence_length].view(count, -1)
    forms: dict[str, dict[str, bool]] = {"simulated": {"packed": False}, "exact": {"exact": True}, "rounded": {}}
    models = {name: quept.load(options.artifact, dtype=torch.float32, **form) for name, form in forms.items()}
    rows = []
    for bits in models["simulated"].quept_manifest.recipe.bits:
        sums, largest, scale = dict.fromkeys(forms, 0.0), dict.fromkeys(forms, 0.0), 0.0
        for model in models.values():
            quept.set_precision(model, bits)
        for ids in windows.split(WINDOWS):
            logits = {name: predictions(model, ids) for name, model in models.items()}
            scale = max(scale, logits["simulated"].abs().max().item())
            for name, found in logits.items():
                sums[name] += loss(found, ids)
                largest[name] = max(largest[name], (found - logits["simulated"]).abs().max().item())
        perplexities = {
            name: float(torch.tensor(each / (windows.numel() - count)).exp()) for name, each in sums.items()
        }
        rows.append(
            {"bits": bits, "perplexity": perplexities, "logits": {n: each / scale for n, each in largest.items()}}
        )
    table = Table("bits", "simulated", "exact", "logits", "rounded", "logits", "perplexity, %")
    for row in rows:
        by, off = row["perplexity"], row["logits"]
        change = 100 * (by["rounded"] / by["simulated"] - 1)
        table.add_row(
            *(str(row["bits"]), f"{by['simulated']:.4f}", f"{by['exact']:.4f}", f"{off['exact']:.1e}"),
            *(f"{by['rounded']:.4f}", f"{off['rounded']:.1e}", f"{change:+.4f}"),
        )
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
