"""What an elastic store takes: bits per weight by part, bytes on disk, and the time to open it.

    python benchmarks/store.py
    python benchmarks/store.py --width 1024 --json store.json

Each store is a LLaMA of one block with random weights, `width` wide, calibrated without training: sizes do not depend
on what was learned. Everything in the block's file counts, its norms and headers included; bits are over the weights of
the block's linears.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

import quept
from quept.config import Recipe
from quept.precision import elastic_linears
from quept.storage.artifact import is_block_shard

PARTS = ("master", "scales", "planes", "shares", "adapters", "other", "headers")
PART_OF = {
    "master": "master",
    "master_scale": "scales",
    "up": "adapters",
    "down": "adapters",
    "adapter_scale": "adapters",
}


def recipes() -> dict[str, Recipe]:
    """`best`, and the paper's cascade of three groups of rank 16 in a store, which has no planes."""
    paper = quept.load_recipe("paper")
    return {
        "best": quept.load_recipe("best"),
        "paper, three groups": paper.updated(
            groups={"groups": [[6, 7, 8], [4, 5], [2, 3]]}, store={"master_bits": 8, "clip_ratio_bits": 4}
        ),
    }


def part_of(name: str) -> str:
    """The part that a tensor of a block belongs to."""
    owner, _, leaf = name.rpartition(".")
    if owner.endswith(".shares"):
        return "shares"
    if owner.endswith(".planes"):
        return "planes"
    return PART_OF.get(leaf, "other") if owner.endswith(".store") else "other"


def measured(width: int, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Bits per weight by part, bytes, and seconds to open a store."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_attention_heads=max(1, width // 64),
        num_hidden_layers=1,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    untrained = recipe.reconstruction.updated(epochs=0, clip_init=4.0)
    smoothing = recipe.smoothing.updated(grid=1, bits=(2,), tokens=16)
    settings = recipe.updated(reconstruction=untrained, smoothing=smoothing)
    quept.calibrate(model, folder, data=torch.randint(256, (2, 16)), recipe=settings)
    sizes = dict.fromkeys(PARTS, 0)
    shards = [path for path in folder.iterdir() if is_block_shard(path)]
    for path in shards:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                sizes[part_of(name)] += tensor.numel() * tensor.element_size()
    total = sum(path.stat().st_size for path in shards)
    sizes["headers"] = total - sum(sizes.values())
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(3):
        for verify, taken in seconds.items():
            started = time.perf_counter()
            loaded = quept.load(folder, verify=verify)
            taken.append(time.perf_counter() - started)
    weights = sum(layer.numel for layer in elastic_linears(loaded).values())
    return {
        "width": width,
        "weights": weights,
        "bytes": total,
        "bits_per_weight": 8 * total / weights,
        "parts": {part: 8 * size / weights for part, size in sizes.items()},
        "open_s": median(seconds[False]),
        "open_verified_s": median(seconds[True]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[1024, 2048, 4096], help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    console, rows = Console(width=160), []
    table = Table(title="Bits per weight in the store of a block", title_justify="left")
    for heading in ("recipe", "width", *PARTS, "all", "MB", "open, ms", "and verify, ms"):
        table.add_column(heading, justify="right")
    for name, recipe in recipes().items():
        for width in options.width:
            with tempfile.TemporaryDirectory() as folder:
                row = measured(width, recipe, Path(folder) / "store")
            rows.append({"recipe": name, **row})
            table.add_row(
                name,
                f"{width:,}",
                *(f"{row['parts'][part]:.3f}" for part in PARTS),
                f"{row['bits_per_weight']:.3f}",
                f"{row['bytes'] / 1e6:.1f}",
                f"{1000 * row['open_s']:.0f}",
                f"{1000 * row['open_verified_s']:.0f}",
            )
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
