"""AutoRound (SignRound): one run for one width."""

from auto_round import AutoRound
from exchange import arguments, block_linears, changed, measured, open_model, read_windows, write
from transformers import AutoTokenizer


def main() -> None:
    chosen = arguments(__doc__)
    model = open_model(chosen.model)
    tokenizer = AutoTokenizer.from_pretrained(chosen.model, local_files_only=True)
    windows = read_windows(chosen.windows)
    before = {name: linear.weight.detach().clone() for name, linear in block_linears(model).items()}

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
    after = {name: linear.weight.detach() for name, linear in block_linears(quantized).items()}
    write(chosen.output, changed(before, after), report, ["auto-round"])


if __name__ == "__main__":
    main()
