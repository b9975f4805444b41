"""Keep keys and values at a bit-width of their own, packed.

python examples/key_value_cache.py
"""

import tempfile

import torch
from transformers import AutoTokenizer

import quept
from quept import builtin
from quept.generation import cache_arguments

with tempfile.TemporaryDirectory() as folder:
    quept.calibrate(
        builtin.model_path(),
        f"{folder}/elastic",
        data=builtin.calibration_text_path(),
        bits="4,8",
        epochs=1,
        samples=16,
        sequence_length=64,
    )
    model = quept.load(f"{folder}/elastic", "w8kv4")  # weights at 8 bits, keys and values at 4
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/elastic")
    inputs = tokenizer("The tailor", return_tensors="pt", return_token_type_ids=False)

    cache = quept.KeyValueCache(model, recent=8)  # the latest 8 tokens stay in full precision
    tokens = model.generate(**inputs, **cache_arguments(cache), max_new_tokens=40, do_sample=False)
    print(tokenizer.decode(tokens[0]))
    held, plain = cache.bytes(), cache.bytes_at(torch.bfloat16)
    print(f"{cache.get_seq_length()} tokens take {held:,} bytes; in bfloat16 {plain:,}")

    quept.set_precision(model, "kv8")  # of keys and values alone: for tokens from here on
