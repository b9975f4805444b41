"""Time, memory and throughput of a calibration, and where the time goes.

    python benchmarks/calibration.py                              the built-in model, the demo's recipe
    python benchmarks/calibration.py --model DIR --data TEXT      any model, the recipe `paper`
    python benchmarks/calibration.py --shape llama-2-7b           one decoder block of that shape with random weights,
                                                                  extrapolated to the model at the paper's settings
    python benchmarks/calibration.py --predict                    memory and work of whole models, computed only, with
                                                                  --recipe of another recipe than `paper`

Everything runs through `quept.calibrate`, as a user's calibration does. Seconds are this machine's; what carries over
is the split, the bytes per weight, and the ratios. Peak memory is the process's resident set, less what Python and its
libraries take before the calibration starts.
"""

import argparse
import json
import resource
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

import quept
from quept import builtin
from quept.calibration import Report
from quept.config import Recipe

GIB = 2**30
# Phases that are the blocks' own passes: training, and moving the streams on.
PASSES = ("forward and backward", "quantized stream", "full-precision stream")


@dataclass(frozen=True)
class Shape:
    """The widths of a LLaMA model, and its number of blocks."""

    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    blocks: int

    @property
    def block_weights(self) -> int:
        """Weights in the linears of one block."""
        key_values = self.hidden // self.heads * self.key_value_heads
        return self.hidden * (2 * self.hidden + 2 * key_values + 3 * self.intermediate)

    def device_bytes(self, tokens: int, element: int, learned: int = 0) -> int:
        """Predicted peak on the compute device, for a batch of `tokens` and weights of `element` bytes.

        Per weight: the block's own copy, the derived weight, and for the backward pass a float32 and a mask. Besides:
        the fake quantizer's temporaries (six float32 copies of the largest linear), and the activations kept for the
        backward pass (about twelve of the hidden and five of the intermediate size per token). At each of the `learned`
        bit-widths a float32 offset, its gradient and its mean square.
        """
        weights = self.block_weights * (2 * element + 4 + 1 + 12 * learned)
        temporaries = 6 * 4 * self.hidden * self.intermediate
        return weights + temporaries + tokens * (12 * self.hidden + 5 * self.intermediate) * element

    def stream_bytes(self, element: int, recipe: Recipe) -> int:
        """The streams of hidden states: full precision, and one for all bit groups or for each."""
        streams = 1 + (len(recipe.groups) if recipe.merging.strategy == "per-group" else 1)
        return streams * recipe.data.samples * recipe.data.sequence_length * self.hidden * element

    def petaflop(self, recipe: Recipe) -> float:
        """Matrix products of training's forward and backward passes, in 1e15."""
        every = recipe.reconstruction.train_every or (1,) * len(recipe.groups)
        groups = sum(1 / each for each in every if each)
        tokens = recipe.data.samples * recipe.data.sequence_length * recipe.reconstruction.epochs * groups
        return 6 * self.block_weights * tokens * self.blocks / 1e15


SHAPES = {
    "llama-3.2-1b": Shape(2048, 8192, 32, 8, 16),
    "llama-2-7b": Shape(4096, 11008, 32, 32, 32),
    "llama-2-13b": Shape(5120, 13824, 40, 40, 40),
    "llama-3-8b": Shape(4096, 14336, 32, 8, 32),
    "llama-2-70b": Shape(8192, 28672, 64, 8, 80),
    "small": Shape(512, 1376, 8, 8, 8),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hugging Face model (default: the built-in one)")
    parser.add_argument("--data", help="text for --model")
    parser.add_argument("--shape", choices=SHAPES, help="one block of this shape instead of a model")
    parser.add_argument("--recipe", help="recipe (default: best for the built-in model, else paper)")
    parser.add_argument("--samples", type=int, help="windows (default: the recipe's; 2 with --shape)")
    parser.add_argument("--sequence-length", type=int, help="tokens a window (default: the recipe's; 512 with --shape)")
    parser.add_argument("--epochs", type=int, help="epochs (default: the recipe's; 2 with --shape)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--predict", action="store_true", help="print predictions for whole models, and stop")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def peak_memory() -> int:
    """The process's highest resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one_block(shape: Shape) -> Any:
    """A LLaMA model of a single block with random weights, and next to no vocabulary."""
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        num_hidden_layers=1,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def with_epochs(recipe: Recipe, epochs: int | None) -> Recipe:
    changes = {} if epochs is None else {"reconstruction": recipe.reconstruction.updated(epochs=epochs)}
    return recipe.updated(**changes)


def run(options: argparse.Namespace, output: Path) -> Report:
    if options.shape:
        shape = SHAPES[options.shape]
        samples, length = options.samples or 2, options.sequence_length or 512
        windows = torch.randint(256, (samples, length), generator=torch.Generator().manual_seed(0))
        recipe = with_epochs(quept.load_recipe(options.recipe or "paper"), options.epochs or 2)
        return quept.calibrate(one_block(shape), output, data=windows, recipe=recipe, device=options.device)
    recipe = quept.load_recipe(options.recipe or ("paper" if options.model else "best"))
    return quept.calibrate(
        options.model or builtin.model_path(),
        output,
        data=options.data or builtin.calibration_text_path(),
        recipe=with_epochs(recipe, options.epochs),
        samples=options.samples,
        sequence_length=options.sequence_length,
        device=options.device,
    )


def extrapolate(shape: Shape, report: Report, peak: int) -> dict[str, Any]:
    """The whole model at the paper's settings, from one block: work is proportional to tokens, memory is not."""
    paper = quept.load_recipe("paper")
    trained = report.manifest.recipe
    tokens = paper.data.samples * paper.data.sequence_length
    per_token = report.seconds["forward and backward"] / report.trained_tokens
    passes = tokens * paper.reconstruction.epochs * len(paper.groups)
    element = 2 if report.manifest.provenance.compute_dtype == "bfloat16" else 4
    batch = trained.reconstruction.batch_size * trained.data.sequence_length
    on_host = 2 * shape.block_weights if report.manifest.provenance.device == "cpu" else 0  # the bfloat16 original
    return {
        "block_weights": shape.block_weights,
        "bytes_per_weight_at_peak": (peak - report.stream_bytes) / shape.block_weights,
        "batch_tokens": batch,
        "predicted_peak_bytes": shape.device_bytes(batch, element) + on_host,
        "seconds_per_token_and_width": per_token,
        "whole_model_hours": per_token * passes * shape.blocks / 3600,
        "whole_model_stream_bytes": shape.stream_bytes(element, paper),
        "whole_model_petaflop": shape.petaflop(paper),
    }


def predict(console: Console, recipe: Recipe) -> None:
    """Whole models on a GPU, one block in bfloat16, with a recipe's batches and windows."""
    tokens, learned = recipe.reconstruction.batch_size * recipe.data.sequence_length, len(recipe.learned_rounding)
    table = Table("shape", "blocks", "weights per block", "GPU memory", "streams (host)", "model (host)", "PFLOP")
    for name, shape in SHAPES.items():
        table.add_row(
            name,
            str(shape.blocks),
            f"{shape.block_weights / 1e6:,.0f} M",
            f"{shape.device_bytes(tokens, 2, learned) / GIB:.1f} GiB",
            f"{shape.stream_bytes(2, recipe) / GIB:.1f} GiB",
            f"{2 * shape.blocks * shape.block_weights / GIB:.0f} GiB",
            f"{shape.petaflop(recipe):,.0f}",
        )
    console.print(table)


def main() -> None:
    options = arguments()
    console = Console(highlight=False)
    if options.predict:
        predict(console, quept.load_recipe(options.recipe or "paper"))
        return
    before = peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        report = run(options, Path(folder) / "artifact")
    peak = peak_memory() - before
    useful = sum(report.seconds.get(phase, 0.0) for phase in PASSES)
    figures: dict[str, Any] = {
        "torch_threads": torch.get_num_threads(),
        "device": report.manifest.provenance.device,
        "total_seconds": report.total_seconds,
        "seconds": report.seconds,
        "share_outside_forward_and_backward": 1 - useful / report.total_seconds,
        "trained_tokens": report.trained_tokens,
        "tokens_per_second": report.trained_tokens / report.total_seconds,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak,
        "stream_bytes": report.stream_bytes,
    }
    if options.shape:
        figures["extrapolation"] = extrapolate(SHAPES[options.shape], report, figures["peak_memory_bytes"])
    split = Table("phase", "seconds", "share")
    for phase, seconds in sorted(report.seconds.items(), key=lambda item: -item[1]):
        split.add_row(phase, f"{seconds:.2f}", f"{seconds / report.total_seconds:.1%}")
    rest = report.total_seconds - sum(report.seconds.values())
    split.add_row("everything else", f"{rest:.2f}", f"{rest / report.total_seconds:.1%}")
    console.print(split)
    console.print(
        f"{figures['tokens_per_second']:,.0f} trained tokens per second (each token counted once per width it was "
        f"trained at)\n{figures['share_outside_forward_and_backward']:.1%} of the time outside the blocks' forward and "
        f"backward passes\npeak memory {figures['peak_memory_bytes'] / GIB:.2f} GiB, of it streams "
        f"{report.stream_bytes / GIB:.2f} GiB"
    )
    for name, value in figures.get("extrapolation", {}).items():
        console.print(f"  {name.replace('_', ' ')}: {value:,.4g}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
