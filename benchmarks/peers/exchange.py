"""What a peer reads and writes. Runs in each peer's own environment: only torch, transformers and safetensors.

A peer is called as

    python PEER.py --model DIR --windows windows.safetensors --bits 4 --group-size 128 --output DIR

and writes `weights.safetensors`, the dequantized weight `(out, in)` of every linear it quantized under the linear's
path, and `report.json`. What it leaves out there, it left unquantized.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


def arguments(description: str) -> argparse.Namespace:
    """The arguments that every peer takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="Hugging Face model directory")
    parser.add_argument("--windows", type=Path, required=True, help="safetensors file with token windows, `windows`")
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group-size", type=int, required=True, help="inputs per scale; 0 means one scale a row")
    parser.add_argument("--iterations", type=int, default=200, help="for peers that iterate")
    parser.add_argument("--batch-size", type=int, default=8, help="windows per iteration, for peers that iterate")
    parser.add_argument("--leave", nargs="*", default=[], help="linears to leave alone, for quept")
    parser.add_argument("--threads", type=int, default=0, help="threads (default: all)")
    parser.add_argument("--output", type=Path, required=True)
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    return chosen


def read_windows(path: Path) -> Tensor:
    """Token ids, `(samples, tokens)`."""
    return load_file(path)["windows"].to(torch.int64)


def open_model(directory: str) -> Any:
    """The model in float32."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()


def block_linears(model: Any) -> dict[str, nn.Linear]:
    """The linears inside the decoder blocks, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(part.isdigit() for part in path.split("."))
    }


def measured(work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What `work` returns, its seconds, and by how many bytes it raised the process's peak resident memory."""
    before = _peak()
    start = time.perf_counter()
    result = work()
    return result, {"seconds": time.perf_counter() - start, "peak_memory": max(0, _peak() - before)}


def write(output: Path, weights: dict[str, Tensor], report: dict[str, Any], packages: Iterable[str]) -> None:
    """Write what the evaluation reads."""
    output.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.float().contiguous() for name, weight in weights.items()}, output / "weights.safetensors")
    report["versions"] = {name: version(name) for name in ("torch", "transformers", *packages)}
    report["threads"] = torch.get_num_threads()
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _peak() -> int:
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024
