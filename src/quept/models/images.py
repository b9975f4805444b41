"""A checkpoint's own image processor: from pictures to pixels as the model takes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor

from quept.errors import InvalidInput
from quept.models.checkpoint import first_line, quiet

if TYPE_CHECKING:
    from PIL.Image import Image

# Processors exist for Pillow and for torchvision, and differ a little in how they resize. Always asking for the first
# gives the same pixels whether torchvision is installed or not. Older versions call it by another name.
_WITH_PILLOW: Mapping[str, Any] = (
    {"backend": "pil"} if find_spec("transformers.image_processing_backends") else {"use_fast": False}
)


@dataclass(frozen=True)
class ImageProcessor:
    """The image processor of a classifier's checkpoint, with the facts that `quept.data.load_images` asks for.

    Attributes:
        channels: Channels of the pictures and of the model: 1 or 3.
        size: Height and width of the pixels it returns; None if they depend on the picture.
        classes: Number of classes of the model.
        label2id: The number of each class by its name.
    """

    channels: int
    size: tuple[int, int] | None
    classes: int
    label2id: Mapping[str, int] = field(repr=False)
    process: Any = field(repr=False)

    def pixels(self, images: Sequence["Image"]) -> Tensor:
        """Return pictures with `channels` channels as float32 pixels (B, C, H, W)."""
        if self.channels == 1:
            # As arrays with their one channel: not every version takes a picture without that axis.
            arrays = [np.asarray(image)[:, :, None] for image in images]
            batch = self.process(arrays, input_data_format="channels_last", return_tensors="pt")
        else:
            batch = self.process(list(images), return_tensors="pt")
        pixels: Tensor = batch["pixel_values"]
        return pixels.to(torch.float32)


def open_image_processor(source: str | Path, config: Any) -> ImageProcessor:
    """Open the image processor of a checkpoint, local or on the hub.

    Args:
        source: The checkpoint, a directory or a name on the hub.
        config: The model's configuration: its channels, image size and labels.

    Raises:
        InvalidInput: Pillow is not installed, or the checkpoint has no image processor that transformers can load.
    """
    if find_spec("PIL") is None:
        raise InvalidInput(
            "Preparing images needs the package 'pillow', which is not installed: run `pip install 'quept[vision]'`."
        )
    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(
                str(source), trust_remote_code=False, local_files_only=Path(source).is_dir(), **_WITH_PILLOW
            )
    except Exception as error:  # whatever a damaged file, or a package that is missing, makes transformers do
        raise InvalidInput(
            f"The model {str(source)!r} has no image processor that transformers can load ({first_line(error)}); it "
            "needs a preprocessor_config.json that fits it."
        ) from None
    return describe(processor, config)


def describe(processor: Any, config: Any) -> ImageProcessor:
    """Return a processor with the facts that follow from it and a model's configuration."""
    means = getattr(processor, "image_mean", None)
    channels = getattr(config, "num_channels", None) or (len(means) if isinstance(means, list | tuple) else 3)
    return ImageProcessor(
        channels=channels,
        size=_size(processor, config),
        classes=config.num_labels,
        label2id={str(name): int(number) for name, number in config.label2id.items()},
        process=processor,
    )


def _size(processor: Any, config: Any) -> tuple[int, int] | None:
    if getattr(processor, "do_center_crop", None):
        return _sides(getattr(processor, "crop_size", None))
    if getattr(processor, "do_resize", None):
        return _sides(getattr(processor, "size", None))
    image_size = getattr(config, "image_size", None)
    if isinstance(image_size, int):
        return image_size, image_size
    return (image_size[0], image_size[1]) if image_size is not None else None


def _sides(size: Any) -> tuple[int, int] | None:
    """Return height and width where the size has both: some processors only fix the shortest edge."""
    sides = size if isinstance(size, Mapping) else vars(size) if size is not None else {}
    height, width = sides.get("height"), sides.get("width")
    return (height, width) if height and width else None
