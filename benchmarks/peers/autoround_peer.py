"""AutoRound (SignRound): one run for one width."""

import os

import torch
from exchange import arguments, block_linears, measured, open_model, read_windows, write
from torch import Tensor
from transformers import AutoTokenizer

os.environ["AR_ALLOW_W8_ASYM"] = "1"  # 8 bits with a zero point: some engines refuse it, the algorithm does not
from auto_round import AutoRound


def main() -> None:
    chosen = arguments(__doc__)
    model = open_model(chosen.model)
    tokenizer = AutoTokenizer.from_pretrained(chosen.model, local_files_only=True)
    windows = read_windows(chosen.windows)

    def work() -> object:
        quantizer = AutoRound(
            model,
            tokenizer,
            bits=chosen.bits,
            group_size=chosen.group_size or -1,
            sym=False,
            iters=chosen.iterations,
            batch_size=chosen.batch_size,
            seqlen=windows.shape[1],
            nsamples=windows.shape[0],
            dataset=[row.unsqueeze(0) for row in windows],
            device_map="cpu",
        )
        quantizer.quantize()
        return quantizer.model

    quantized, report = measured(work)
    linears = block_linears(quantized)
    weights = {path: on_grid(linear) for path, linear in linears.items() if getattr(linear, "scale", None) is not None}
    write(chosen.output, weights, report, ["auto-round"])


def on_grid(linear: torch.nn.Linear) -> Tensor:
    """The dequantized weight in float32; AutoRound leaves it rounded to bfloat16."""
    weight = linear.weight.detach().float()
    scale = linear.scale.detach().float().reshape(weight.shape[0], -1, 1)
    columns = weight.shape[1]
    size = linear.group_size if linear.group_size > 0 and columns > linear.group_size else columns
    padded = torch.nn.functional.pad(weight, (0, size * scale.shape[1] - columns))
    grouped = padded.reshape(weight.shape[0], scale.shape[1], size)
    return ((grouped / scale).round() * scale).flatten(1)[:, :columns]


if __name__ == "__main__":
    main()
