"""The built-in models, with data to calibrate and to evaluate them.

They are part of the package, so that everything can be tried and tested without a download. `scripts/train_builtin.py`
trains the small Llama on texts of the grammar in `quept.builtin.corpus`; `scripts/train_digits.py` trains the small
vision transformer on scikit-learn's handwritten digits.
"""

from pathlib import Path

_ROOT = Path(__file__).parent


def model_path() -> Path:
    """Return the folder of the language model and its tokenizer, for `from_pretrained`."""
    return _ROOT / "model"


def calibration_text_path() -> Path:
    """Return the text for calibrating the language model, which was not trained on it."""
    return _ROOT / "text" / "calibration.txt"


def test_text_path() -> Path:
    """Return the held-out text for measuring perplexity, from another seed than the other texts."""
    return _ROOT / "text" / "test.txt"


def vision_model_path() -> Path:
    """Return the folder of the vision model and its image processor, for `from_pretrained`."""
    return _ROOT / "digits" / "model"


def calibration_images_path() -> Path:
    """Return the images for calibrating the vision model, which was not trained on them."""
    return _ROOT / "digits" / "images" / "calibration.npz"


def test_images_path() -> Path:
    """Return the held-out images for measuring accuracy."""
    return _ROOT / "digits" / "images" / "test.npz"
