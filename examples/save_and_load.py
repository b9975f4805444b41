"""Save an elastic model again, load it in other ways, and look at it.

python examples/save_and_load.py
"""

import tempfile

import torch

import quept
from quept import builtin

with tempfile.TemporaryDirectory() as folder:
    quept.calibrate(
        builtin.model_path(),
        f"{folder}/elastic",
        data=builtin.calibration_text_path(),
        bits="2,4,8",
        epochs=1,
        samples=16,
        sequence_length=64,
    )
    info = quept.info(f"{folder}/elastic")
    print(f"{info.stored_bytes:,} bytes hold all of", [each.bits for each in info.precisions])

    # On a CPU weights stay packed; a budget in bytes says how many bit-widths may be resident at once.
    packed = quept.load(f"{folder}/elastic", 4, memory_budget=2_000_000)
    quept.prefetch(packed, 2).result()  # in the background; the switch that follows finds the weights ready
    quept.set_precision(packed, 2)

    # Dense weights, for training beside it or for other devices.
    dense = quept.load(f"{folder}/elastic", 2, packed=False, dtype=torch.float32)
    quept.save(dense, f"{folder}/again")  # the same artifact: all bit-widths, not only the one in force

    ids = torch.arange(10)[None]
    again = quept.load(f"{folder}/again", 2, packed=False)
    assert torch.equal(dense(ids).logits, again(ids).logits)
    print("saved and loaded: the same logits")
