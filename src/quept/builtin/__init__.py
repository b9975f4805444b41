"""The built-in model: a small Llama, the text to calibrate it with and the text to test it on.

They come with the package so that everything can be tried, tested and demonstrated without a download.
`scripts/train_builtin.py` makes all of them from nothing but the grammar in `quept.builtin.corpus`.
"""

from pathlib import Path

_ROOT = Path(__file__).parent


def model_path() -> Path:
    """Return the folder of the model and its tokenizer, as `from_pretrained` expects it."""
    return _ROOT / "model"


def calibration_text_path() -> Path:
    """Return the text to calibrate the built-in model with; the model was not trained on it."""
    return _ROOT / "text" / "calibration.txt"


def test_text_path() -> Path:
    """Return the held-out text to measure perplexity on, from another seed than the other texts."""
    return _ROOT / "text" / "test.txt"
