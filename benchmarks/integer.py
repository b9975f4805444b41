"""Linears with quantized weights and activations in integers, against the same in bfloat16.

    python benchmarks/integer.py                   whole LLaMA blocks with a prefill of 512 tokens, the passes around
                                                   their products, and single linears
    python benchmarks/integer.py --repeats 50 --json FILE
    OMP_NUM_THREADS=1 python benchmarks/integer.py         where other work keeps the cores busy

Everything that is compared runs in turns, so that whatever else the machine does meets all alike. A ratio is bfloat16's
time by the integers', so above one is faster; times are medians with the quartiles, and include quantizing the
activation, the product, and scaling its result. The blocks are transformers' own, in bfloat16 outside the linears;
query, key and value share one quantized activation, and so do gate and up. "(torch)" is the same without quept's
kernels, by PyTorch's operations.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaDecoderLayer, LlamaRotaryEmbedding

from quept import ops
from quept.formats.integers import IntegerWeight, Tokens
from quept.numerics import affine
from quept.numerics.hadamard import Rotation

# Output and input channels.
SHAPES = ((512, 512), (1024, 1024), (2816, 1024), (1024, 2816), (4096, 1024), (1024, 4096), (2048, 2048))
SHAPES += ((5632, 2048), (2048, 5632), (4096, 4096))
TOKENS = (1, 16, 64, 128, 512, 2048)
# Hidden and intermediate size.
BLOCKS = ((1024, 2816), (1024, 4096), (2048, 5632))
HEADS, PREFILL = 16, 512
WIDTHS = (1024, 2816, 4096, 5632, 11008)  # of the passes around a product
SHARE = torch.tensor(0.95)


class Shared:
    """The last activation that was quantized, for the linears that read the same one."""

    def __init__(self, rotation: Rotation | None) -> None:
        self.rotation = rotation
        self.source: Tensor | None = None
        self.tokens: Tokens | None = None

    def __call__(self, x: Tensor) -> Tokens:
        if self.tokens is None or x is not self.source:
            self.source = x
            self.tokens = ops.quantize_tokens(x, SHARE, 8, self.rotation)
        return self.tokens

    def forget(self, *_: Any) -> None:
        self.source = self.tokens = None


class IntegerLinear(nn.Module):
    """A linear layer in eight-bit integers."""

    def __init__(self, linear: nn.Linear, shared: Shared) -> None:
        super().__init__()
        self.weight, self.shared = quantized(linear.weight, shared.rotation), shared

    def forward(self, x: Tensor) -> Tensor:
        return ops.integer_linear(self.shared(x), self.weight, None, x.dtype)


def quantized(weight: Tensor, rotation: Rotation | None = None) -> IntegerWeight:
    """Rounded to nearest on a symmetric grid per channel."""
    weight = weight.detach().float() if rotation is None else rotation(weight.detach().float())
    grouped = weight.unsqueeze(1)
    grid = affine.grid(grouped, 8, symmetric=True)
    codes = affine.codes(grouped, grid).squeeze(1)
    return ops.integer_weight(codes, grid.scale.flatten(), grid.zero_point.flatten(), torch.device("cpu"))


def in_integers(block: nn.Module, rotation: Rotation | None) -> nn.Module:
    """A copy of a LLaMA block whose linears run in integers, the input of the last one rotated."""
    block = copy.deepcopy(block)
    groups = (
        (block.self_attn, ("q_proj", "k_proj", "v_proj"), None),
        (block.self_attn, ("o_proj",), None),
        (block.mlp, ("gate_proj", "up_proj"), None),
        (block.mlp, ("down_proj",), rotation),
    )
    for parent, names, rotated in groups:
        shared = Shared(rotated)
        for name in names:
            setattr(parent, name, IntegerLinear(getattr(parent, name), shared))
        getattr(parent, names[-1]).register_forward_hook(shared.forget)
    return block


def measure(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each, in turns: the median, the quartiles and the minimum."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 3):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if turn >= 3:
                times[name].append(1000 * (time.perf_counter() - started))
    found = {}
    for name, taken in times.items():
        low, _, high = quantiles(taken, n=4)
        found[name] = {"median": median(taken), "low": low, "high": high, "minimum": min(taken)}
    return found


def whole(x: Tensor, weight: IntegerWeight) -> Tensor:
    return ops.integer_linear(ops.quantize_tokens(x, SHARE, 8), weight, None, x.dtype)


def linears(repeats: int) -> list[dict[str, Any]]:
    rows = []
    for out_features, in_features in SHAPES:
        weight = torch.randn(out_features, in_features)
        half, packed = weight.bfloat16(), quantized(weight)
        for tokens in TOKENS:
            x = torch.randn(tokens, in_features).bfloat16()
            shared = ops.quantize_tokens(x, SHARE, 8)
            runs = {
                "bf16": partial(F.linear, x, half),
                "int8": partial(whole, x, packed),
                "int8, shared": partial(ops.integer_linear, shared, packed, None, x.dtype),
            }
            what = f"{tokens} x {out_features} x {in_features}"
            rows.append({"what": what, "times": measure(runs, repeats)})
    return rows


def without_kernels(run: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    with ops.using("onednn", "int_mm"):
        return run(*arguments, **named)


def passes(repeats: int) -> list[dict[str, Any]]:
    """What stands around the products, by PyTorch's operations and by the kernels."""
    rows = []
    for width in WIDTHS:
        x, rotation = torch.randn(PREFILL, width).bfloat16(), Rotation.of(width)
        tokens = ops.quantize_tokens(x, SHARE, 8)
        wide = torch.randn(1, width)
        runs: dict[str, Callable[[], Any]] = {
            "quantize": partial(ops.quantize_tokens, x, SHARE, 8),
            "rotate": partial(ops.rotate, x, rotation),
            "rotate and quantize": partial(ops.quantize_tokens, x, SHARE, 8, rotation),
            "scale": partial(ops.finish_product, x.clone(), tokens.scale, tokens.scale, None, None, x.dtype),
            "shift and scale": partial(
                ops.finish_product, x.float(), tokens.scale, tokens.sums, wide, None, torch.bfloat16
            ),
        }
        for name, run in runs.items():
            compared = {"torch": partial(without_kernels, run), "kernel": run}
            rows.append({"what": f"{name}, {PREFILL} x {width}", "times": measure(compared, repeats)})
    return rows


def blocks(repeats: int) -> list[dict[str, Any]]:
    rows = []
    for hidden, intermediate in BLOCKS:
        config = LlamaConfig(
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            attn_implementation="sdpa",
        )
        block = LlamaDecoderLayer(config, 0).bfloat16().eval()
        x = torch.randn(1, PREFILL, hidden).bfloat16()
        positions = LlamaRotaryEmbedding(config)(x, torch.arange(PREFILL)[None])
        variants = {"bf16": block}
        for rotated, rotation in (("", None), (", rotated", Rotation.of(intermediate))):
            variants[f"int8{rotated}"] = in_integers(block, rotation)
        runs = {name: partial(run, x, position_embeddings=positions) for name, run in variants.items()}
        runs |= {f"{name} (torch)": partial(without_kernels, run) for name, run in runs.items() if name != "bf16"}
        exact = runs["bf16"]().float()
        errors = {name: float((run().float() - exact).norm() / (exact - x).norm()) for name, run in runs.items()}
        what = f"block of {hidden} and {intermediate}, {PREFILL} tokens"
        rows.append({"what": what, "times": measure(runs, repeats), "errors": errors})
    return rows


def show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    names = list(rows[0]["times"])
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(f"{name}, ms", justify="right")
    for name in names[1:]:
        table.add_column(f"{names[0]} / {name}", justify="right")
    for row in rows:
        times = row["times"]
        cells = [f"{times[n]['median']:.3f} ({times[n]['low']:.3f} to {times[n]['high']:.3f})" for n in names]
        ratios = [
            f"{times[names[0]]['median'] / times[n]['median']:.2f} "
            f"({times[names[0]]['minimum'] / times[n]['minimum']:.2f})"
            for n in names[1:]
        ]
        table.add_row(row["what"], *cells, *ratios)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200, help="turns of each comparison (default: 200)")
    parser.add_argument("--only", choices=("blocks", "passes", "linears"), help="one of the parts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured, as JSON")
    arguments = parser.parse_args()
    if not ops.has_integer_product(torch.device("cpu")):
        parser.error("this processor has no exact integer product")
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    console = Console()
    console.print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {ops.integer_product.backend_on('cpu').name}. "
        "Medians (quartiles); ratios of the medians (of the minima).",
        soft_wrap=True,
    )
    console.print(ops.describe(), soft_wrap=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for part, run in (("blocks", blocks), ("passes", passes), ("linears", linears)):
        if arguments.only in (None, part):
            found[part] = run(arguments.repeats)
            show(console, part.capitalize(), found[part])
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
