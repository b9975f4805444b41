"""Whether a change that should change nothing changes nothing: digests of what calibrations end in.

    python scripts/same_bytes.py before.json              record, on the commit before the change
    python scripts/same_bytes.py before.json --compare    and afterwards, on the same machine: lists what differs

Every shipped recipe calibrates its built-in model, shortly. What is recorded is the SHA-256 of each tensor in the
artifact, and of the logits at full precision and at every width. Digests depend on the processor and on the versions of
PyTorch and transformers, so they are compared on one machine and are not kept in the repository.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

import quept
from quept import builtin, recipes
from quept.data import load_images, token_stream
from quept.models.checkpoint import open_tokenizer, read_config
from quept.models.images import open_image_processor

SHORT = {"epochs": 2, "batch_size": 4}
SAMPLES, LENGTH = 8, 64


def main() -> int:
    """Record or compare; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="of the digests")
    parser.add_argument("--compare", action="store_true", help="with the file, instead of writing it")
    parser.add_argument("--recipes", nargs="+", help="some of the shipped recipes (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.recipes or sorted(path.stem for path in Path(recipes.__file__).parent.glob("*.toml"))
    found = {}
    for name in names:
        print(name, file=sys.stderr, flush=True)
        found |= {f"{name} {what}": digest for what, digest in digests(quept.load_recipe(name))}
    if not options.compare:
        options.file.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    before = {key: value for key, value in json.loads(options.file.read_text()).items() if key.split()[0] in names}
    differing = [key for key in {**before, **found} if before.get(key) != found.get(key)]
    print("\n".join(differing) or f"{len(found)} digests, all the same")
    return 1 if differing else 0


def digests(recipe: quept.Recipe) -> Iterator[tuple[str, str]]:
    """What was calibrated, by name: tensors, and logits at each width."""
    recipe = recipe.updated(reconstruction=recipe.reconstruction.updated(**SHORT))
    vision = "vision" in recipe.name
    model = builtin.vision_model_path() if vision else builtin.model_path()
    data = builtin.calibration_images_path() if vision else builtin.calibration_text_path()
    length = {} if vision else {"sequence_length": LENGTH}
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "artifact"
        quept.calibrate(model, artifact, data=data, recipe=recipe, samples=SAMPLES, compiled=False, **length)
        for path in sorted(artifact.glob("*.safetensors")):
            with safe_open(path, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118
                    yield name, digest(shard.get_tensor(name))
        loaded = quept.load(artifact)
        inputs = samples_of(vision, model)
        for width in (None, *recipe.bits):
            quept.set_precision(loaded, width)
            with torch.inference_mode():
                yield f"logits at {width or 'full precision'}", digest(loaded(**inputs).logits)


def samples_of(vision: bool, model: Path) -> dict[str, Any]:
    """What the logits are for."""
    if vision:
        source = load_images(builtin.test_images_path(), open_image_processor(model, read_config(model)), split="test")
        return {"pixel_values": next(iter(source.batches(SAMPLES)))[0]}
    tokens = token_stream(builtin.test_text_path(), open_tokenizer(model), max_tokens=SAMPLES * LENGTH)
    return {"input_ids": tokens.view(SAMPLES, LENGTH).long()}


def digest(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes."""
    values = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + values.tobytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
