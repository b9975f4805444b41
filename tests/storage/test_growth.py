"""Nothing is kept of a model that was loaded and deleted."""

import gc
import json
import tracemalloc
from collections import Counter

import torch
from safetensors.torch import load_file, save_file

import quept
from quept.storage.tensors import DTYPES, read_shards

LOADS = 6


def test_loads_and_deletes_leave_no_objects_behind(tiny_model, windows, tmp_path):
    recipe = quept.load_recipe("best").adjusted(epochs=0)
    quept.calibrate(tiny_model("llama"), tmp_path / "artifact", data=windows, recipe=recipe)

    def load_and_run():
        loaded = quept.load(tmp_path / "artifact")
        with torch.inference_mode(), quept.at_precision(loaded, "4kv4"):
            loaded(windows[:1])
        quept.prefetch(loaded, 2).result()

    def objects():
        gc.collect()
        return Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())

    for _ in range(3):
        load_and_run()
    objects()  # which leaves a few itself, once
    before = objects()
    for _ in range(LOADS):
        load_and_run()
    assert {name: count for name, count in (objects() - before).items() if count >= LOADS} == {}


def test_reading_leaves_no_memory_behind(tmp_path):
    """Numbers are none of the objects that are counted above; Python keeps small ones itself, and not these shapes."""
    save_file({f"{number}": torch.zeros(300, 500) for number in range(50)}, tmp_path / "shard.safetensors")

    def read():
        read_shards([tmp_path / "shard.safetensors"])
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        for _ in range(3):
            size = read()
        for _ in range(10):
            after = read()
    finally:
        tracemalloc.stop()
    assert after - size < 50 * 28, "less than a number for each tensor, in ten times"


def test_tensors_are_read_as_safetensors_reads_them(tmp_path):
    path = tmp_path / "shard.safetensors"
    numbers = torch.arange(24).view(2, 3, 4)
    tensors = {name: numbers.to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 5), "bytes": torch.arange(3, dtype=torch.uint8)}
    save_file(tensors, path)
    found = read_shards([path])
    assert list(found) == sorted(tensors)
    for name, tensor in load_file(path).items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    # Another program's: a float behind three bytes.
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    text = json.dumps(header).encode()
    data = bytes((1, 2, 3)) + torch.tensor([0.5, -2.0]).numpy().tobytes()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert {name: tensor.tolist() for name, tensor in read_shards([path]).items()} == {"a": [1, 2, 3], "b": [0.5, -2.0]}
