"""GPTQ, as llm-compressor runs it: one pass for one width."""

import torch
from datasets import Dataset
from exchange import arguments, block_linears, measured, open_model, read_windows, write
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from torch import Tensor


def main() -> None:
    chosen = arguments(__doc__)
    model = open_model(chosen.model)
    windows = read_windows(chosen.windows)
    rows = {"input_ids": windows.tolist(), "attention_mask": torch.ones_like(windows).tolist()}
    linears = block_linears(model)
    group = chosen.group_size
    fitting = [path for path, linear in linears.items() if not group or linear.in_features % group == 0]
    # Rows that are no multiple of the group are refused; those below it have one scale, as a row has.
    short = [path for path, linear in linears.items() if group and linear.in_features < group]
    schemes = {}
    for name, targets, size in (("grouped", set(fitting) - set(short), group), ("rows", set(short), 0)):
        if targets:
            weights = {"num_bits": chosen.bits, "type": "int", "symmetric": False}
            weights |= {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
            schemes[name] = {"targets": sorted(targets), "weights": weights}
    before = {path: linear.weight.detach().clone() for path, linear in linears.items()}

    def work() -> None:
        oneshot(
            model=model,
            dataset=Dataset.from_dict(rows),
            recipe=GPTQModifier(config_groups=schemes, ignore=["lm_head"]),
            max_seq_length=windows.shape[1],
            num_calibration_samples=windows.shape[0],
        )

    _, report = measured(work)
    weights: dict[str, Tensor] = {}
    for path, linear in block_linears(model).items():
        if hasattr(linear, "quantization_scheme"):
            weights[path] = dequantized(linear)
        elif not torch.equal(linear.weight, before[path]):
            raise SystemExit(f"{path} changed without being quantized")
    write(chosen.output, weights, report, ["llmcompressor", "compressed-tensors"])


def dequantized(linear: torch.nn.Linear) -> Tensor:
    """The weight on its grid: llm-compressor leaves it there in float, and this rounds it once more to be sure."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    result: Tensor = fake_quantize(
        linear.weight.detach(),
        linear.weight_scale,
        linear.weight_zero_point,
        linear.quantization_scheme.weights,
        getattr(linear, "weight_g_idx", None),
    )
    return result


if __name__ == "__main__":
    main()
