"""A whole model, token by token: quept at every width beside llama.cpp's formats, and PyTorch's bfloat16.

    python benchmarks/decode.py --folder DIR                    a LLaMA of 1.75 B parameters with random weights
    python benchmarks/decode.py --folder DIR --hidden 2048 --intermediate 5632 --layers 22
    python benchmarks/decode.py --folder DIR --json FILE

Speed does not depend on what the weights are, so these are random; the artifact is made by `quept.calibrate` without
training, with the head at 8 bits, and the GGUF files by llama.cpp's own quantizer with its defaults. All stay in the
folder and are made once. llama.cpp comes from the package llama-cpp-python, built for this processor, and gguf; without
them quept is measured alone.

Each engine lives in a process of its own, with as many threads. They take turns, a round each, so that whatever else
the machine does meets all alike. Figures are the medians of rounds, and the quartiles. Memory is what the process of
a width holds of the machine's (VmRSS) after a round, less what it held before the model was opened; each width has a
process of its own for that.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.console import Console
from rich.table import Table

PROMPT = 16  # tokens in front of those that are timed
VOCABULARY = 32000
LLAMA_FORMATS = {"Q2_K": 10, "Q3_K_M": 12, "Q4_0": 2, "Q5_0": 8, "Q6_K": 18, "Q8_0": 7}  # numbers of llama_ftype
COMPARED = {2: "Q2_K", 3: "Q3_K_M", 4: "Q4_0", 5: "Q5_0", 6: "Q6_K", 8: "Q8_0"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--key-value-heads", type=int, default=32)
    parser.add_argument("--bits", type=int, nargs="+", default=list(range(2, 9)))
    parser.add_argument("--tokens", type=int, default=8, help="in a round; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def model_folder(options: argparse.Namespace) -> Path:
    """The model in bfloat16, made once."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder: Path = options.folder / "model"
    if not (folder / "config.json").exists():
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=options.hidden,
            intermediate_size=options.intermediate,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            num_key_value_heads=options.key_value_heads,
            max_position_embeddings=2048,
        )
        torch.manual_seed(0)
        LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def artifact(options: argparse.Namespace) -> Path:
    """What quept makes of it, made once."""
    import torch
    from transformers import LlamaForCausalLM

    import quept

    output: Path = options.folder / "artifact"
    if not output.exists():
        recipe = quept.load_recipe("best")
        training = recipe.reconstruction.updated(epochs=0, clip_init=12.0, last_block_loss=None, label_weight=0.0)
        recipe = recipe.updated(reconstruction=training, outer_bits=8).with_bits(options.bits)
        windows = torch.randint(VOCABULARY, (1, 16), generator=torch.Generator().manual_seed(0))
        model = LlamaForCausalLM.from_pretrained(model_folder(options), dtype=torch.bfloat16)
        quept.calibrate(model, output, data=windows, recipe=recipe)
    return output


def gguf_file(options: argparse.Namespace, name: str) -> Path:
    """The model in one of llama.cpp's formats, made once."""
    import llama_cpp

    path: Path = options.folder / f"{name}.gguf"
    if not path.exists():
        source = options.folder / "F16.gguf"
        if not source.exists():
            write_gguf(options, source)
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.nthread = LLAMA_FORMATS[name], options.threads
        if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), settings):
            sys.exit(f"llama.cpp could not make {path}")
    return path


def write_gguf(options: argparse.Namespace, path: Path) -> None:
    """The model in float16, as llama.cpp reads it."""
    import gguf
    import numpy as np
    import torch
    from safetensors import safe_open

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(options.hidden)
    writer.add_block_count(options.layers)
    writer.add_feed_forward_length(options.intermediate)
    writer.add_head_count(options.heads)
    writer.add_head_count_kv(options.key_value_heads)
    writer.add_rope_dimension_count(options.hidden // options.heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(1)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, options.layers)
    for shard in sorted(model_folder(options).glob("*.safetensors")):
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                values = tensors.get_tensor(name)
                kept = np.float16 if values.dim() == 2 else np.float32
                written = names.get_name(name, try_suffixes=(".weight",))
                writer.add_tensor(written, values.to(torch.float32).numpy().astype(kept))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quept_decoder(options: argparse.Namespace) -> Callable[[str], list[float]]:
    """Decodes a round at the width that it is given, or `bf16`; seconds of each token."""
    import torch

    import quept
    from quept.generation import cache_arguments, cache_of
    from quept.precision import make_resident

    torch.set_num_threads(options.threads)
    opened: dict[bool, Any] = {}

    @torch.inference_mode()
    def decode(name: str) -> list[float]:
        packed = name != "bf16"
        if packed not in opened:
            opened[packed] = quept.load(artifact(options), dtype=torch.bfloat16, packed=packed, memory_budget=2**40)
        model = opened[packed]
        quept.set_precision(model, None if name == "bf16" else int(name))
        make_resident(model)
        ids = torch.arange(PROMPT + options.tokens).unsqueeze(0) + 100
        cache, seconds = cache_of(model(ids[:, :PROMPT], use_cache=True, logits_to_keep=1)), []
        for context in range(PROMPT, PROMPT + options.tokens):
            start = time.perf_counter()
            cache = cache_of(model(ids[:, context : context + 1], **cache_arguments(cache), use_cache=True))
            seconds.append(time.perf_counter() - start)
        return seconds

    return decode


def llama_decoder(options: argparse.Namespace) -> Callable[[str], list[float]]:
    """The same by llama.cpp, in the format that it is given."""
    import llama_cpp

    loaded: dict[str, Any] = {}

    def decode(name: str) -> list[float]:
        if name not in loaded:
            loaded.clear()  # one at a time in memory
            loaded[name] = llama_cpp.Llama(
                str(gguf_file(options, name)),
                n_ctx=256,
                n_threads=options.threads,
                n_threads_batch=options.threads,
                verbose=False,
            )
        model, seconds = loaded[name], []
        model.reset()
        model.eval(list(range(100, 100 + PROMPT)))
        for context in range(PROMPT, PROMPT + options.tokens):
            start = time.perf_counter()
            model.eval([100 + context])
            seconds.append(time.perf_counter() - start)
        return seconds

    return decode


@contextmanager
def worker(options: argparse.Namespace, engine: str) -> Iterator[Callable[[str], tuple[list[float], int]]]:
    """An engine in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", engine]
    settings = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=settings) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(name: str) -> tuple[list[float], int]:
            print(name, file=process.stdin, flush=True)
            for line in process.stdout:
                if line.startswith("answer "):
                    seconds, held = json.loads(line.removeprefix("answer "))
                    return seconds, held
            sys.exit(f"The {engine} worker ended.")

        yield ask
        process.stdin.close()


def serve(decode: Callable[[str], list[float]]) -> None:
    before = resident()
    for line in sys.stdin:
        print("answer", json.dumps([decode(line.strip()), resident() - before]), flush=True)


def resident() -> int:
    """Bytes of memory that this process holds."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


def summary(seconds: list[float]) -> dict[str, float]:
    low, _, high = quantiles(seconds, n=4)
    return {"seconds": median(seconds), "low": low, "high": high, "tokens_per_second": 1 / median(seconds)}


def measure(options: argparse.Namespace, has_llama: bool) -> dict[str, Any]:
    """All engines and widths."""
    formats = {bits: COMPARED[bits] for bits in options.bits if has_llama and bits in COMPARED}
    for name in formats.values():
        gguf_file(options, name)
    rows: list[dict[str, Any]] = []
    with worker(options, "quept") as ask, worker(options, "llama") as ask_llama:
        baseline = [seconds for _ in range(options.rounds) for seconds in ask("bf16")[0]]
        for bits in options.bits:
            ours: list[float] = []
            theirs: list[float] = []
            for _ in range(options.rounds + 1):  # the first warms up
                ours += ask(str(bits))[0]
                theirs += ask_llama(formats[bits])[0] if bits in formats else []
            rows.append({"bits": bits, "quept": summary(ours[options.tokens :])})
            if bits in formats:
                rows[-1] |= {"format": formats[bits], "llama": summary(theirs[options.tokens :])}
    for row in rows:
        row["quept"]["resident_bytes"] = held_by(options, str(row["bits"]))
    full = {**summary(baseline), "resident_bytes": held_by(options, "bf16")}
    return {"shape": {**vars(options), "folder": None, "json": None}, "bf16": full, "widths": rows}


def main() -> None:
    options = arguments()
    if options.worker:
        serve({"quept": quept_decoder, "llama": llama_decoder}[options.worker](options))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    artifact(options)
    has_llama = find_spec("llama_cpp") is not None and find_spec("gguf") is not None
    report = measure(options, has_llama)
    show(report)
    if not has_llama:
        print("llama.cpp was not measured: pip install llama-cpp-python gguf")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def held_by(options: argparse.Namespace, name: str) -> int:
    """Bytes that a process holds which decodes at one width alone."""
    with worker(options, "quept") as ask:
        return ask(name)[1]


def show(report: dict[str, Any]) -> None:
    """The table for people."""
    baseline = report["bf16"]["tokens_per_second"]
    held = report["bf16"]["resident_bytes"]
    table = Table(
        "bits", "tokens/s", "quartiles", "/ bf16", "memory / bf16", "llama.cpp", "tokens/s", "quept / llama.cpp"
    )
    for row in report["widths"]:
        mine, other = row["quept"], row.get("llama")
        speed = mine["tokens_per_second"]
        compared = ("-", "-", "-")
        if other:
            theirs = other["tokens_per_second"]
            compared = (row["format"], f"{theirs:.2f}", f"{speed / theirs:.2f}")
        quartiles = f"{1 / mine['high']:.2f} to {1 / mine['low']:.2f}"
        memory = f"{mine['resident_bytes'] / held:.2f}"
        table.add_row(str(row["bits"]), f"{speed:.2f}", quartiles, f"{speed / baseline:.2f}", memory, *compared)
    console = Console()
    console.print(f"bfloat16 by PyTorch: {baseline:.2f} tokens/s, {held / 1e9:.2f} GB of memory")
    console.print(table)


if __name__ == "__main__":
    main()
