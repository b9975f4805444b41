"""HQQ (half-quadratic quantization): no data, each linear on its own."""

import torch
from exchange import arguments, block_linears, measured, open_model, write
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer
from torch import Tensor


def main() -> None:
    chosen = arguments(__doc__)
    if chosen.bits not in Quantizer.SUPPORTED_BITS:
        raise SystemExit(f"HQQ has no {chosen.bits} bits")
    model = open_model(chosen.model)

    def work() -> dict[str, Tensor]:
        weights = {}
        for path, linear in block_linears(model).items():
            inputs = linear.in_features
            group = min(chosen.group_size, inputs) or inputs
            if inputs % group:
                continue  # HQQ asserts that groups divide a row
            settings = BaseQuantizeConfig(nbits=chosen.bits, group_size=group, axis=1)
            quantized = HQQLinear(
                linear, settings, compute_dtype=torch.float32, device="cpu", initialize=True, del_orig=False
            )
            weights[path] = quantized.dequantize().reshape(linear.weight.shape)
        return weights

    weights, report = measured(work)
    write(chosen.output, weights, report, ["hqq"])


if __name__ == "__main__":
    main()
