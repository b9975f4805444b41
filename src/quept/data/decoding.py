"""Decoding of images from bytes, files and arrays, with the number of channels that a model takes."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from quept.data.hub import require
from quept.errors import InvalidInput

if TYPE_CHECKING:
    from PIL.Image import Image

Content: TypeAlias = "bytes | Path | np.ndarray[Any, np.dtype[np.uint8]] | None"

# Formats that Pillow decodes by itself: for some others it starts another program.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
)
_GRAY = ("1", "L", "LA")
_DEEP = ("I", "F")  # and I;16, I;16B ...: more than 8 bits per channel, which a conversion would cut off
_MODES = {1: "L", 3: "RGB"}


class UnreadableImage(Exception):
    """An image that cannot be decoded; the message says why."""


def check_pillow(channels: int) -> None:
    """Check that images of `channels` channels can be decoded here.

    Raises:
        InvalidInput: Pillow is not installed, or the number of channels is neither 1 nor 3.
    """
    require("PIL.Image", "Reading images", extra="vision", otherwise="")
    if channels not in _MODES:
        raise InvalidInput(
            f"The model takes images of {channels} channels, but images are read with 1 (grayscale) or 3 (red, green, "
            f"blue): choose a model that takes one of these."
        )


def decode(content: Content, channels: int, name: str) -> "Image":
    """Decode an image into `channels` channels of 8 bits each.

    A grayscale image becomes a color one where the model takes three channels. A color image becomes a grayscale one
    only if all its pixels are gray, since there are several ways to mix colors and the model was trained with one of
    them. Transparency is dropped, and the orientation in EXIF data is applied.

    Args:
        content: An encoded image, its path, or an array (H, W) or (H, W, C) of uint8; None if the image is missing.
        channels: 1 or 3.
        name: The name of the image in messages.

    Raises:
        UnreadableImage: The image is missing or cannot be decoded.
        InvalidInput: The image has colors, and the model takes one channel.
    """
    try:
        image = _open(content)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow raises errors of many classes for damaged files
        raise UnreadableImage(_reason(error)) from None
    if channels == 3:
        return image.convert("RGB")
    if image.mode in _GRAY:
        return image.convert("L")
    red, green, blue = image.convert("RGB").split()
    if red.tobytes() != green.tobytes() or red.tobytes() != blue.tobytes():
        raise InvalidInput(
            f"'{name}' is a color image, but the model takes images of 1 channel: convert the images to grayscale "
            f"as the model's training images were."
        )
    return red


def _open(content: Content) -> "Image":
    from PIL import Image

    if content is None:
        raise UnreadableImage("it is missing")
    if isinstance(content, np.ndarray):
        return Image.fromarray(content[:, :, 0] if content.ndim == 3 and content.shape[2] == 1 else content)
    if isinstance(content, bytes):
        return _loaded(Image.open(BytesIO(content), formats=_FORMATS))
    with Image.open(content, formats=_FORMATS) as image:
        return _loaded(image)


def _loaded(image: "Image") -> "Image":
    from PIL import Image

    width, height = image.size
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise UnreadableImage(f"it has {width} x {height} pixels, more than the {Image.MAX_IMAGE_PIXELS:,} allowed")
    if image.mode.split(";")[0] in _DEEP:
        raise UnreadableImage(f"its pixels have more than 8 bits (mode {image.mode})")
    image.load()
    image = _upright(image)
    # Colors of a palette with transparency are defined only together with the fourth channel.
    return image.convert("RGBA") if image.mode in ("P", "PA") and "transparency" in image.info else image


def _upright(image: "Image") -> "Image":
    from PIL import ImageOps

    if "exif" not in image.info:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data does not make an image unreadable
        return image


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    # Pillow names the buffer object that it read from, which differs from run to run.
    return "it is no image of a known format" if "cannot identify image" in text else text or type(error).__name__
