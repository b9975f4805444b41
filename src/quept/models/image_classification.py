"""Image classifiers: pixels in, one prediction per image, judged by accuracy."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification

from quept.config import Recipe
from quept.data import load_images
from quept.errors import InvalidInput
from quept.evaluation.judges import AccuracyJudge, DataOptions, note_skipped
from quept.models.images import ImageProcessor, describe, open_image_processor
from quept.models.task import Choice, Note, Task, check_count

IMAGES_PER_BATCH = 64


class ImageClassification(Task):
    """Samples are images as the model's processor prepares them, `(samples, channels, height, width)`."""

    name = "image-classification"
    verb = "classifies images"
    model_class = AutoModelForImageClassification
    default_recipe = "vision-best"
    samples_name = "images"
    search_samples = 256
    metric = AccuracyJudge.metric
    per_token = False
    keeps_keys_values = False
    foreign_options = ("original", "kv_bits", "sequence_length", "stride", "max_tokens")

    def open_processor(self, source: str | Path, config: Any) -> ImageProcessor:
        """Return the image processor."""
        return open_image_processor(source, config)

    def save_processor(self, processor: Any, directory: Path) -> None:
        """Write the image processor's settings."""
        (processor.process if isinstance(processor, ImageProcessor) else processor).save_pretrained(directory)

    def fit(
        self, recipe: Recipe, config: Any, data: Any, samples: int | None, sequence_length: int | None, note: Note
    ) -> Recipe:
        """Set the number of images; a sequence length is an error."""
        if sequence_length is not None:
            raise InvalidInput(f"The sequence length {sequence_length} is of texts; images have none, so leave it out.")
        if isinstance(data, Tensor):
            if data.dim() != 4 or not data.is_floating_point() or not data.numel():
                raise InvalidInput(
                    f"data is a tensor of shape {tuple(data.shape)} and dtype {data.dtype}; images are floats of shape "
                    "(samples, channels, height, width)."
                )
            samples = len(data)
        check_count("samples", samples)
        return recipe if samples is None else recipe.updated(data=recipe.data.updated(samples=samples))

    def draw(self, data: str | Path | Tensor, processor: Any, config: Any, recipe: Recipe, choice: Choice) -> Tensor:
        """Return images, equally many of each class where possible, checked against what the model takes."""
        if isinstance(data, Tensor):
            return _checked(data.to("cpu", torch.float32), config)
        if not isinstance(data, str | Path):
            raise InvalidInput(
                f"data is a {type(data).__name__}; give a folder, file or data set of images, or a tensor of them."
            )
        if processor is None:
            raise InvalidInput("Images cannot be read without an image processor; pass image_processor=, or a tensor.")
        preparation = processor if isinstance(processor, ImageProcessor) else describe(processor, config)
        source = load_images(data, preparation, split="train", strict=choice.strict)
        count = recipe.data.samples
        # A source that is read once, such as an archive, does not say how many it has.
        spare = choice.spare if source.count is not None and source.count >= count + choice.spare else 0
        sample = source.take(count + spare, seed=choice.seed)
        note_skipped(source, choice.note)
        return sample.pixels

    def arguments(self, samples: Tensor) -> dict[str, Any]:
        """Return the arguments for pixels."""
        return {"pixel_values": samples}

    def tokens_per_sample(self, config: Any, samples: Tensor) -> int:
        """Return the number of patches in an image."""
        patch = getattr(config, "patch_size", 16)
        height, width = map(int, patch if isinstance(patch, tuple | list) else (patch, patch))
        return max(1, samples.shape[-2] // height) * max(1, samples.shape[-1] // width)

    def classes(self, config: Any) -> int:
        """Return the number of labels."""
        return int(config.num_labels)

    def predictions(self, samples: Tensor) -> int:
        """Return the number of images."""
        return len(samples)

    def batch_size(self, samples: Tensor) -> int:
        """Return 64 images."""
        return IMAGES_PER_BATCH

    def describe_amount(self, recipe: Recipe) -> str:
        """Return the number of images."""
        return f"{recipe.data.samples} images"

    def judge(
        self, model: Any, processor: Any, data: str | Path, options: DataOptions, *, note: Note = lambda text: None
    ) -> AccuracyJudge:
        """Open images with labels; options that are for texts are an error."""
        self.check_options(
            sequence_length=options.sequence_length, stride=options.stride, max_tokens=options.max_tokens
        )
        source = load_images(data, processor, split="test", strict=options.strict)
        return AccuracyJudge(source, options.batch_size, options.max_images, note)


IMAGE_CLASSIFICATION = ImageClassification()


def _checked(images: Tensor, config: Any) -> Tensor:
    """Return the images; raises `InvalidInput` for another size than the model's and for non-finite values."""
    channels, size = getattr(config, "num_channels", None), getattr(config, "image_size", None)
    wanted = None if size is None else (size, size) if isinstance(size, int) else tuple(size)
    if channels not in (None, images.shape[1]) or wanted not in (None, tuple(images.shape[2:])):
        raise InvalidInput(
            f"The images are {' x '.join(map(str, images.shape[1:]))}, but the model takes {channels} channels of "
            f"{' x '.join(map(str, wanted or ('any', 'any')))} pixels; prepare them with its own image processor."
        )
    if not bool(torch.isfinite(images).all()):
        raise InvalidInput("The images hold NaN or infinite values; prepare them with the model's own image processor.")
    return images
