"""Calibrate a language model once, and run it at several bit-widths.

    python examples/language_model.py

The built-in model stands for yours: give `quept.calibrate` a directory or a Hub name, and text of your own.
"""

import tempfile

from transformers import AutoTokenizer

import quept
from quept import builtin

with tempfile.TemporaryDirectory() as folder:
    # `best` is the default recipe. The last three arguments make it as short as an example must be.
    report = quept.calibrate(
        builtin.model_path(),
        f"{folder}/elastic",
        data=builtin.calibration_text_path(),
        recipe="best",
        epochs=1,
        samples=32,
        sequence_length=64,
    )
    print(f"calibrated in {report.total_seconds:.0f} s")

    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/elastic")
    model = quept.load(f"{folder}/elastic", 4)  # the transformers model itself, at 4 bits
    inputs = tokenizer("The tailor", return_tensors="pt", return_token_type_ids=False)
    for bits in (2, 3, 4, 8):
        quept.set_precision(model, bits)  # from the next forward pass on
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        print(bits, "bits:", tokenizer.decode(tokens[0]))

    with quept.at_precision(model, 8):  # in this thread alone, and restored afterwards
        print("within:", quept.precision_of(model).bits["model.layers.0.mlp.down_proj"])
