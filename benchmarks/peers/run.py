"""quept beside single-width quantizers: same model, samples, granularity and evaluation.

    python benchmarks/peers/run.py --model DIR --data TEXT --test TEXT --output FOLDER

Each peer runs in an environment of its own, made on first use below `--environments` from the list of packages beside
this file. quept runs once for all widths, with its default recipe; every other method once for each width. All of them
hand back dequantized weights, which are put into the float32 model and measured by quept's evaluation: perplexity, KL
divergence to full precision, top-1 agreement. Linears that a method left unquantized are counted and, in bytes, charged
at full precision; `quept, the linears of ...` is a calibration of quept that leaves these alone too.

Results are kept after every run in `peers.json`, and a second start goes on from there; `peers.md` and `peers.png` are
made from it.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from quept_peer import without
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import quept
from quept.assembly import make_elastic
from quept.data import token_stream, token_windows
from quept.evaluation import divergence, perplexity
from quept.files import replacing
from quept.layers import paths
from quept.layers.paths import LinearSetting
from quept.layers.size import full_precision_bytes, packed_bytes
from quept.models import architecture_of, register_architecture
from quept.models.checkpoint import open_tokenizer
from quept.precision import elastic_linears, rounded_to_nearest, set_precision

HERE = Path(__file__).parent
PEERS = {"autoround": "AutoRound", "gptq": "GPTQ (llm-compressor)", "hqq": "HQQ"}
METHODS = ("rounding", "quept", *PEERS)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face model directory")
    parser.add_argument("--data", required=True, help="calibration text")
    parser.add_argument("--test", required=True, help="text to measure on")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--test-tokens", type=int, default=300 * 256)
    parser.add_argument("--iterations", type=int, default=200, help="of AutoRound")
    parser.add_argument("--bits", default="2,3,4,8", help="widths at which the single-width peers run")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma separated")
    parser.add_argument("--environments", type=Path, default=Path("peer-environments"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def interpreter(peer: str, environments: Path) -> Path:
    """The Python of a peer's environment, which is made if it is not there."""
    folder = environments.resolve() / peer
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        packages = [str(python), "-m", "pip", "install", "--quiet", "-r", str(HERE / f"{peer}.txt")]
        subprocess.run(packages, check=True)
        ready.touch()
    return python


def run_peer(
    method: str, bits: int, group_size: int, options: argparse.Namespace, name: str, leave: Sequence[str] = ()
) -> tuple[Path, dict[str, Any]]:
    """Run a method in its environment; its output and report. What it compiles, it compiles anew for each method."""
    python = Path(sys.executable) if method == "quept" else interpreter(method, options.environments)
    output = options.output.resolve() / "runs" / name
    if (output / "report.json").is_file():
        return output, json.loads((output / "report.json").read_text())
    command = [str(python), str(HERE / f"{method}_peer.py"), "--model", options.model, "--output", str(output)]
    command += ["--windows", str(options.output.resolve() / "windows.safetensors"), "--bits", str(bits)]
    command += ["--group-size", str(group_size), "--iterations", str(options.iterations)]
    command += ["--leave", *leave] if leave else []
    output.mkdir(parents=True, exist_ok=True)
    cache = options.output.resolve() / "compiled" / method
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "HF_HUB_OFFLINE": "1"}
    with (output / "log.txt").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode:
        last = (output / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(last[0] if last else f"exit code {done.returncode}")
    return output, json.loads((output / "report.json").read_text())


class Bench:
    """The full-precision model, the model under test, and the test text."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.recipe = options, quept.load_recipe("best")
        self.reference = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
        self.stored = AutoModelForCausalLM.from_pretrained(options.model).dtype
        self.plain = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
        make_elastic(self.plain, self.recipe)
        tokenizer = open_tokenizer(options.model)
        self.tokens = token_stream(options.test, tokenizer, max_tokens=options.test_tokens)
        windows = token_windows(
            options.data,
            tokenizer,
            samples=options.samples,
            sequence_length=options.sequence_length,
            seed=options.seed,
        )
        save_file({"windows": windows}, options.output / "windows.safetensors")

    def group_size(self, bits: int) -> int:
        """Inputs per scale at a width; 0 is a row."""
        granularity = self.recipe.granularity
        return granularity.group_size if bits in granularity.grouped_bits else 0

    def measure(self, model: Any) -> dict[str, float]:
        """Perplexity, KL divergence to full precision and top-1 agreement."""
        length = self.options.sequence_length
        found = divergence(
            lambda ids: self.reference(ids, use_cache=False).logits,
            lambda ids: model(ids, use_cache=False).logits,
            self.tokens,
            sequence_length=length,
        )
        value = perplexity(model, self.tokens, sequence_length=length).value
        return {"perplexity": value, "kl": found.kl, "top1_agreement": found.top1_agreement}

    def bytes(self, bits: int, unquantized: list[str]) -> int:
        """The model packed at a width, the linears in `unquantized` at full precision."""
        size = packed_bytes(self.plain, bits, self.stored)
        layers = elastic_linears(self.plain)
        for path in unquantized:
            scales = layers[path].out_features * layers[path].scales_per_row(bits)
            count = layers[path].weight.numel()
            size += count * self.stored.itemsize - (count * bits + scales * (bits + 16)) // 8
        return size

    def put(self, weights: dict[str, Tensor]) -> list[str]:
        """Give the plain model these weights for its linears; the paths of the linears without one."""
        layers = elastic_linears(self.plain)
        for path, layer in layers.items():
            layer.set_default(LinearSetting(None, None, paths.given, weights.get(path, layer.weight)))
        return sorted(layers.keys() - weights.keys())

    def rows(self, method: str, bits: tuple[int, ...]) -> Iterator[dict[str, Any]]:
        """The measurements of one method, one width after another."""
        if method == "rounding":
            for width in self.recipe.bits:
                with rounded_to_nearest(self.plain, width):
                    yield self.row("rounding", width, self.measure(self.plain), {"seconds": 0.0, "peak_memory": 0}, [])
        elif method == "quept":
            output, report = run_peer("quept", 0, 0, self.options, "quept")
            model = quept.load(output / "artifact", dtype=torch.float32)
            for width in self.recipe.bits:
                set_precision(model, width)
                yield self.row("quept", width, self.measure(model), report, [])
        else:
            for width in bits:
                try:
                    output, report = run_peer(method, width, self.group_size(width), self.options, f"{method}-{width}")
                except RuntimeError as error:
                    yield {"method": PEERS[method], "bits": width, "failed": str(error)}
                    continue
                left = self.put(load_file(output / "weights.safetensors"))
                yield self.row(PEERS[method], width, self.measure(self.plain), report, left)
                self.put({})

    def same_linears(self, found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """quept calibrated on the linears that a peer quantizes, where these are not all, at the peer's widths."""
        left: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in found:
            if row.get("unquantized"):
                left.setdefault(tuple(row["unquantized"]), []).append(row)
        for number, (leave, rows) in enumerate(left.items(), 1):
            methods = " and ".join(dict.fromkeys(row["method"] for row in rows))
            output, report = run_peer("quept", 0, 0, self.options, f"quept-without-{number}", leave)
            architecture = without(self.options.model, list(leave))
            whole = architecture_of(architecture.model_type)
            register_architecture(architecture, replace=True)
            try:
                model = quept.load(output / "artifact", dtype=torch.float32)
            finally:
                register_architecture(whole, replace=True)
            for bits in dict.fromkeys(row["bits"] for row in rows):
                set_precision(model, bits)
                yield self.row(f"quept, the linears of {methods}", bits, self.measure(model), report, list(leave))

    def row(
        self, method: str, bits: int, measured: dict[str, float], report: dict[str, Any], left: list[str]
    ) -> dict[str, Any]:
        return {
            "method": method,
            "bits": bits,
            **measured,
            "seconds": report["seconds"],
            "peak_memory": report["peak_memory"],
            "bytes": self.bytes(bits, left),
            "unquantized": left,
            "versions": report.get("versions", {}),
        }


def main() -> None:
    options = arguments()
    console = Console(highlight=False)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "peers.json"
    settings = {
        name: getattr(options, name)
        for name in ("model", "data", "test", "samples", "sequence_length", "test_tokens", "iterations", "seed")
    }
    found = json.loads(path.read_text()) if path.is_file() else {"settings": settings, "done": [], "rows": []}
    if found["settings"] != settings:
        raise SystemExit(f"{path} is of other settings, {found['settings']}; choose another --output.")
    bits = tuple(int(width) for width in options.bits.split(","))
    bench = Bench(options)
    found["machine"] = {"threads": torch.get_num_threads(), "processor": platform.processor() or platform.machine()}
    found["full_precision"] = perplexity(bench.reference, bench.tokens, sequence_length=options.sequence_length).value
    found["full_precision_bytes"] = full_precision_bytes(bench.plain, bench.stored)
    for method in options.methods.split(","):
        if method in found["done"]:
            continue
        console.print(method)
        found["rows"] += bench.rows(method, bits)
        found["done"].append(method)
        write_json(path, found)
    if "quept" in found["done"]:
        found["rows"] = [row for row in found["rows"] if not row["method"].startswith("quept, ")]
        found["rows"] += bench.same_linears(found["rows"])
    write_json(path, found)
    (options.output / "peers.md").write_text(markdown(found), encoding="utf-8")
    plot(found, options.output / "peers.png")
    console.print(markdown(found))


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Write the results whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def markdown(found: dict[str, Any]) -> str:
    """The table, width by width, and the ratio of times."""
    lines = [
        f"Full precision: perplexity {found['full_precision']:.4f}, {found['full_precision_bytes'] / 1e6:.2f} MB.",
        "",
        "| bits | method | perplexity | KL divergence | top-1 agreement | seconds | peak memory | MB | unquantized |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(found["rows"], key=lambda row: (row["bits"], row.get("perplexity", float("inf")))):
        if "failed" in row:
            lines.append(f"| {row['bits']} | {row['method']} | failed: {row['failed'][:120]} | | | | | | |")
            continue
        seconds = f"{row['seconds']:.0f}" + (" (all)" if row["method"].startswith("quept") else "")
        memory = f"{row['peak_memory'] / 2**20:.0f} MiB"
        lines.append(
            f"| {row['bits']} | {row['method']} | {row['perplexity']:.4f} | {row['kl']:.3g} | "
            f"{row['top1_agreement']:.2%} | {seconds} | {memory} | {row['bytes'] / 1e6:.2f} | "
            f"{len(row['unquantized']) or 'none'} |"
        )
    ours = [row["seconds"] for row in found["rows"] if row["method"] == "quept"]
    theirs = {
        row["bits"]: row["seconds"] for row in found["rows"] if row["method"] == PEERS["autoround"] and "seconds" in row
    }
    if ours and {2, 3, 4} <= theirs.keys():
        three = [theirs[bits] for bits in (2, 3, 4)]
        lines += [
            "",
            f"quept took {ours[0]:.0f} s for all widths, AutoRound {' + '.join(f'{one:.0f}' for one in three)} = "
            f"{sum(three):.0f} s for 2, 3 and 4 bits: {ours[0] / (sum(three) / 3):.2f} of its runs.",
        ]
    return "\n".join(lines) + "\n"


def plot(found: dict[str, Any], path: Path) -> None:
    """KL divergence by width, a line per method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in found["rows"]:
        if "kl" in row:
            lines.setdefault(row["method"], []).append((row["bits"], row["kl"]))
    for method, points in lines.items():
        panel.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=method)
    panel.set(yscale="log", xlabel="bits", ylabel="KL divergence to full precision, nats per token")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
