"""Whether plans are below the line between two uniform widths, and by more than chance: perplexity and divergence.

    python benchmarks/line.py --artifact DIR --model MODEL --test TEXT --plan PLAN.json --plan ANOTHER.json

A language model's artifact and the model that it was made of, which divergences are to. Plans mix two widths; bits are
of weights alone, without scales. The last column is how far the mean loss of a token is from the line, below zero is
better, with its standard error, for which tokens are compared with themselves.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor
from transformers import AutoModelForCausalLM

import quept
from quept.config import Precision, PrecisionPlan
from quept.data import token_stream
from quept.models.checkpoint import open_tokenizer
from quept.precision import at_precision, elastic_linears

WINDOWS_PER_BATCH = 8


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", required=True)
    parser.add_argument("--model", required=True, help="what the artifact was made of")
    parser.add_argument("--test", required=True, help="text to judge plans on")
    parser.add_argument("--plan", action="append", default=[], type=Path, help="may be given several times")
    parser.add_argument("--widths", type=int, nargs=2, default=[2, 3], help="that the line is between")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--test-tokens", type=int, help="default: all")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def losses(
    model: Any, reference: Any, windows: Tensor, plans: dict[str, PrecisionPlan]
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """For each batch, by plan: the loss of each token, and the divergence of its prediction from the reference's."""
    for batch in track(windows.split(WINDOWS_PER_BATCH), "Reading"):
        expected = F.log_softmax(reference(batch).logits[:, :-1], -1)
        found = {}
        for name, plan in plans.items():
            with at_precision(model, plan):
                predicted = F.log_softmax(model(batch).logits[:, :-1], -1)
            loss = -predicted.gather(-1, batch[:, 1:, None])
            found[name] = loss.flatten(), (expected.exp() * (expected - predicted)).sum(-1).flatten()
        yield found


@torch.inference_mode()
def main() -> None:
    options = arguments()
    model = quept.load(options.artifact, dtype=torch.float32, integers=False, packed=False)
    reference = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokens = token_stream(options.test, open_tokenizer(options.artifact), max_tokens=options.test_tokens)
    windows = tokens[: len(tokens) // options.sequence_length * options.sequence_length]
    layers = elastic_linears(model)
    low, high = options.widths
    plans = {f"uniform {bits}": PrecisionPlan.uniform(layers, bits) for bits in (low, high)}
    plans |= {path.stem: PrecisionPlan.read(path) for path in options.plan}
    batches = list(losses(model, reference, windows.view(-1, options.sequence_length), plans))
    joined = {
        name: [torch.cat(each) for each in zip(*(batch[name] for batch in batches), strict=True)] for name in plans
    }
    rows = []
    for name, plan in plans.items():
        assigned = plan.assigned(layers)
        bits = sum((Precision.parse(assigned[path]).weights or 0) * layer.numel for path, layer in layers.items())
        bits /= sum(layer.numel for layer in layers.values())
        share = (bits - low) / (high - low)
        loss, kl = joined[name]
        (line, line_kl) = (torch.lerp(*pair, share) for pair in zip(*list(joined.values())[:2], strict=True))
        rows.append(
            {
                "plan": name,
                "bits": bits,
                "perplexity": math.exp(loss.mean()),
                "line": math.exp(line.mean()),
                "kl": kl.mean().item(),
                "line_kl": line_kl.mean().item(),
                "above": (loss - line).mean().item(),
                "error": ((loss - line).std() / len(loss) ** 0.5).item(),
            }
        )
    print("| plan | bits | perplexity | line | KL | line | loss above the line |\n" + "|---" * 7 + "|")
    for row in rows:
        print(
            "| {plan} | {bits:.3f} | {perplexity:.3f} | {line:.3f} | {kl:.4f} | {line_kl:.4f} | "
            "{above:+.5f} ± {error:.5f} |".format(**row)
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
