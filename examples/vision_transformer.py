"""Calibrate a vision transformer, weights and activations, and measure its accuracy.

    python examples/vision_transformer.py

The built-in model classifies handwritten digits. Images may be a folder of class folders, a .npz, .parquet or .tar
file, or a data set of the Hub.
"""

import tempfile

import quept
from quept import builtin

with tempfile.TemporaryDirectory() as folder:
    quept.calibrate(
        builtin.vision_model_path(),
        f"{folder}/elastic",
        data=builtin.calibration_images_path(),
        recipe="vision-best",
        bits="4,8",
        epochs=2,
        samples=64,
    )
    found = quept.evaluate(f"{folder}/elastic", builtin.test_images_path(), bits="4,8,w4a8", baseline=True)
    print(f"full precision: {100 * found.full_precision.top1:.2f} % top-1")
    for each in found.results:
        lost, rounding = each.calibrated.lost, each.baseline.lost
        print(f"{each.precision:5} loses {100 * lost:5.2f} points, plain rounding {100 * rounding:5.2f}")
