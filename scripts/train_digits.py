"""Make the built-in vision model of quept: images, training, files.

Beside its language model the library needs an image classifier that everyone has and that fits into a package. This
script takes the handwritten digits that come with scikit-learn (8 x 8 pixels, 1,797 images, ten classes; `pip install
scikit-learn`), divides them by a seeded permutation, trains a small vision transformer on one part, on one CPU
thread, and stores it in bfloat16, together with the calibration and test images, in `src/quept/builtin/digits`.

Narrow, deep and trained without weight decay for many passes: every weight is needed, and rounding hurts. The
training images are shifted, flipped and resized a little each time they are seen. At the end the script rounds
the weights of the stored model's blocks to several bit-widths, to show what that costs.

Every random choice is seeded: on one machine, with the same versions of the libraries, the same files come out.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil
from transformers.utils import logging

from quept.data import load_images
from quept.evaluation import AccuracyEvaluation, evaluate_accuracy
from quept.layers.replace import elastic_like, replace_linears
from quept.models.images import open_image_processor
from quept.recipes import load_recipe

DIGITS = Path(__file__).resolve().parents[1] / "src" / "quept" / "builtin" / "digits"
CALIBRATION, TEST = 256, 500
IMAGE_SIZE = 8


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train the built-in vision model on handwritten digits and write the package data.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=DIGITS, help="folder that receives model/ and images/")
    parser.add_argument("--epochs", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak of the cosine schedule")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="AdamW weight decay of the matrices")
    parser.add_argument("--seed", type=int, default=0, help="seed of the division, the weights and the batches")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the result depends on it")
    return parser.parse_args()


def read_digits(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images (N, 8, 8) uint8 and labels (N,) int64 of each part; scikit-learn's levels are 0 to 16."""
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(seed).permutation(len(images))
    calibration, test, train = np.split(order, [CALIBRATION, CALIBRATION + TEST])
    parts = {"train": train, "calibration": calibration, "test": test}
    return {name: (images[rows], digits.target[rows].astype(np.int64)) for name, rows in parts.items()}


def create_model() -> ViTForImageClassification:
    labels = {digit: str(digit) for digit in range(10)}
    config = ViTConfig(
        image_size=IMAGE_SIZE,
        patch_size=2,
        num_channels=1,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=8,
        num_attention_heads=4,
        initializer_range=0.12,  # the usual 0.02 is for layers many times as wide
        id2label=labels,
        label2id={name: digit for digit, name in labels.items()},
    )
    return ViTForImageClassification(config)


def create_processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(
        do_resize=False,
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_rescale=True,
        do_normalize=True,
        image_mean=[0.5],
        image_std=[0.5],
        do_convert_rgb=False,
    )


def pixels_of(images: np.ndarray) -> Tensor:
    """What the image processor gives: (N, 1, 8, 8), from -1 to 1."""
    return (torch.from_numpy(images).float()[:, None] / 255 - 0.5) / 0.5


def jittered(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each image flipped by up to 6 degrees, resized by up to 5 % and shifted by up to half a pixel."""
    angle, scale, right, down = (2 * torch.rand(4, len(pixels), generator=generator) - 1).unbind()
    angle, scale = angle * math.radians(6), 1 + 0.05 * scale
    shift = 0.5 * 2 / IMAGE_SIZE
    rows = [
        torch.stack([scale * angle.cos(), -scale * angle.sin(), shift * right], dim=1),
        torch.stack([scale * angle.sin(), scale * angle.cos(), shift * down], dim=1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(pixels.shape), align_corners=False)
    # The ground of the images is -1, and what lies outside is 0 to grid_sample.
    return functional.grid_sample(pixels + 1, grid, align_corners=False) - 1


def train(
    model: ViTForImageClassification, images: np.ndarray, labels: np.ndarray, arguments: argparse.Namespace
) -> None:
    pixels, targets = pixels_of(images), torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(arguments.seed)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": arguments.weight_decay}, {"params": others, "weight_decay": 0.0}],
        fused=True,
    )
    # Up over a twentieth of the steps, then down along a cosine.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        arguments.learning_rate,
        epochs=arguments.epochs,
        steps_per_epoch=math.ceil(len(pixels) / arguments.batch_size),
        pct_start=0.05,
        cycle_momentum=False,
    )
    start = time.monotonic()
    model.train()
    for epoch in range(arguments.epochs):
        total = 0.0
        for rows in torch.randperm(len(pixels), generator=generator).split(arguments.batch_size):
            logits = model(pixel_values=jittered(pixels[rows], generator)).logits
            loss = functional.cross_entropy(logits, targets[rows], label_smoothing=0.05)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item() * len(rows)
        if (epoch + 1) % 10 == 0:
            mean, seconds = total / len(pixels), time.monotonic() - start
            print(f"epoch {epoch + 1:3d}/{arguments.epochs}  loss {mean:.4f}  {seconds:4.0f} s", flush=True)
    model.eval()


def evaluate(folder: Path) -> AccuracyEvaluation:
    """The stored model on the stored test images, at full precision and rounded to nearest."""
    model = ViTForImageClassification.from_pretrained(folder / "model", dtype=torch.float32, local_files_only=True)
    source = load_images(folder / "images" / "test.npz", open_image_processor(folder / "model", model.config))
    recipe = load_recipe("best").updated(adapter={"kind": "none"}, learned_rounding=(), store={})
    linears = [name for name, module in model.vit.named_modules() if isinstance(module, nn.Linear)]
    replace_linears(model.vit, "vit", dict.fromkeys(linears, recipe.weight_spec), {}, elastic_like)
    return evaluate_accuracy(model, source.batches(100), (2, 3, 4, 8), calibrated=False, baseline=True)


def main() -> None:
    arguments = parse_arguments()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(arguments.seed)

    parts = read_digits(arguments.seed)
    model = create_model()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters; " + ", ".join(f"{name} {len(part[1]):,}" for name, part in parts.items()))
    train(model, *parts["train"], arguments)

    model.to(torch.bfloat16)
    model.save_pretrained(arguments.output / "model")
    create_processor().save_pretrained(arguments.output / "model")
    folder = arguments.output / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("calibration", "test"):
        images, labels = parts[name]
        np.savez_compressed(folder / f"{name}.npz", x=images, y=labels)

    evaluation = evaluate(arguments.output)
    full = evaluation.full_precision
    print(f"saved to {arguments.output}; {100 * full.top1:.2f} % of {full.images} test images in float32")
    for result in evaluation.results:
        print(f"  rounded to {result.bits} bits: {100 * result.baseline.accuracy.top1:.2f} %")


if __name__ == "__main__":
    main()
