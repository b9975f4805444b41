"""Text and images for calibration and evaluation, as documents, token ids and pixels."""

from quept.data.hub import Split
from quept.data.images import ImageSample, ImageSource, Preprocessing
from quept.data.sources import load_images
from quept.data.text import load_text
from quept.data.tokens import digest, token_stream, token_windows

__all__ = [
    "ImageSample",
    "ImageSource",
    "Preprocessing",
    "Split",
    "digest",
    "load_images",
    "load_text",
    "token_stream",
    "token_windows",
]
