"""The built-in models, what to calibrate them with and what to test them on.

They come with the package so that everything can be tried, tested and demonstrated without a download.
`scripts/train_builtin.py` makes the small Llama and its texts from nothing but the grammar in `quept.builtin.corpus`;
`scripts/train_digits.py` makes the small vision transformer from scikit-learn's handwritten digits.
"""

from pathlib import Path

_ROOT = Path(__file__).parent


def model_path() -> Path:
    """Return the folder of the language model and its tokenizer, as `from_pretrained` expects it."""
    return _ROOT / "model"


def calibration_text_path() -> Path:
    """Return the text to calibrate the language model with; the model was not trained on it."""
    return _ROOT / "text" / "calibration.txt"


def test_text_path() -> Path:
    """Return the held-out text to measure perplexity on, from another seed than the other texts."""
    return _ROOT / "text" / "test.txt"


def vision_model_path() -> Path:
    """Return the folder of the vision model and its image processor, as `from_pretrained` expects it."""
    return _ROOT / "digits" / "model"


def calibration_images_path() -> Path:
    """Return the images to calibrate the vision model with; the model was not trained on them."""
    return _ROOT / "digits" / "images" / "calibration.npz"


def test_images_path() -> Path:
    """Return the held-out images to measure accuracy on."""
    return _ROOT / "digits" / "images" / "test.npz"
