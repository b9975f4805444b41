"""Train a small DeiT and a small Swin on Fashion-MNIST: real models of both families to quantize.

    python benchmarks/vision/train.py deit --output models/deit
    python benchmarks/vision/train.py swin --output models/swin

One CPU thread and a few minutes each. What is written is a standard checkpoint: configuration, safetensors and the
image processor that turns a 28 x 28 grayscale image into what the model takes.

DeiT has its distillation token, and learns from it what DeiT learns: the label that a teacher gives, by the hard
distillation of Touvron et al., equation 3 (arXiv 2012.12877). The teacher is a larger ViT, trained on the same
images. Swin has three stages with patch merging between them; the windows of the first two are shifted.

Every random choice is seeded: on one machine, with the same versions of the libraries, the same files come out.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    SwinConfig,
    SwinForImageClassification,
    ViTForImageClassification,
    ViTImageProcessorPil,
)
from transformers.utils import logging

from quept.data import Preprocessing, load_images
from quept.evaluation import accuracy
from quept.models.images import describe, open_image_processor

ASSETS = Path(__file__).resolve().parents[3] / "shared" / "assets"
# The usual 0.02 is for layers ten times as wide; with it, so small a model spends its first epochs in getting started.
INITIAL_WEIGHTS = 0.08
Loss = Callable[[Any, Tensor, Tensor], Tensor]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small vision transformer on Fashion-MNIST and write its checkpoint.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("family", choices=["deit", "swin"])
    parser.add_argument("--output", type=Path, required=True, help="folder that receives the checkpoint")
    parser.add_argument("--images", type=Path, default=ASSETS / "images", help="fashion.train.npz and fashion.test.npz")
    parser.add_argument("--teacher", type=Path, default=ASSETS / "vit" / "fashion", help="DeiT's teacher")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak of the cosine schedule")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the result depends on it")
    return parser.parse_args()


def create_deit(labels: dict[int, str]) -> DeiTForImageClassificationWithTeacher:
    config = DeiTConfig(
        image_size=28,
        patch_size=4,
        num_channels=1,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=5,
        num_attention_heads=4,
        initializer_range=INITIAL_WEIGHTS,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )
    return DeiTForImageClassificationWithTeacher(config)


def create_swin(labels: dict[int, str]) -> SwinForImageClassification:
    config = SwinConfig(
        image_size=32,
        patch_size=2,
        num_channels=1,
        embed_dim=32,
        depths=[2, 2, 2],
        num_heads=[2, 4, 8],
        window_size=4,
        mlp_ratio=2.0,
        drop_path_rate=0.0,
        initializer_range=INITIAL_WEIGHTS,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )
    return SwinForImageClassification(config)


def create_processor(size: int) -> Any:
    """Images as they are for a model of 28 pixels; enlarged for one of another size."""
    return ViTImageProcessorPil(
        do_resize=size != 28,
        size={"height": size, "width": size},
        do_rescale=True,
        do_normalize=True,
        image_mean=[0.5],
        image_std=[0.5],
        do_convert_rgb=False,
    )


def read_images(path: Path, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Pixels (N, 1, H, W) float32 and labels (N,)."""
    pixels, labels = zip(*load_images(path, preprocessing, strict=True).batches(1000), strict=True)
    return torch.cat(pixels), torch.cat(labels)


def batches(count: int, arguments: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows of each batch, and which of them are mirrored."""
    generator = torch.Generator().manual_seed(arguments.seed)
    for _ in range(arguments.epochs):
        for rows in torch.randperm(count, generator=generator).split(arguments.batch_size):
            yield rows, torch.rand(len(rows), generator=generator) < 0.5


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Rise linearly over a twentieth of the steps, then fall along a cosine to nothing."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def label_loss(output: Any, labels: Tensor, teacher: Tensor) -> Tensor:
    return functional.cross_entropy(output.logits, labels, label_smoothing=0.05)


def distillation_loss(output: Any, labels: Tensor, teacher: Tensor) -> Tensor:
    """Half from the labels by the class token, half from the teacher's labels by the distillation token."""
    of_class = functional.cross_entropy(output.cls_logits, labels, label_smoothing=0.05)
    return (of_class + functional.cross_entropy(output.distillation_logits, teacher)) / 2


def train(model: nn.Module, data: tuple[Tensor, Tensor, Tensor], loss_of: Loss, arguments: argparse.Namespace) -> None:
    """Train on pixels, labels and the teacher's labels."""
    pixels, labels, teacher = data
    steps = arguments.epochs * math.ceil(len(pixels) / arguments.batch_size)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": arguments.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, fused=True)
    start, average = time.monotonic(), 0.0
    model.train()
    for step, (rows, mirrored) in enumerate(batches(len(pixels), arguments)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, arguments.learning_rate)
        batch = torch.where(mirrored.view(-1, 1, 1, 1), pixels[rows].flip(-1), pixels[rows])
        loss = loss_of(model(pixel_values=batch), labels[rows], teacher[rows])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            print(f"step {step + 1:5d}/{steps}  loss {average:.4f}  {time.monotonic() - start:4.0f} s", flush=True)
    model.eval()


@torch.inference_mode()
def predict(model: nn.Module, pixels: Tensor) -> Tensor:
    """The likeliest class of each image, (N,)."""
    return torch.cat([model(pixel_values=batch).logits.argmax(-1) for batch in pixels.split(250)])


def main() -> None:
    arguments = parse_arguments()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(arguments.seed)

    teacher = ViTForImageClassification.from_pretrained(arguments.teacher, local_files_only=True).eval()
    model = (create_deit if arguments.family == "deit" else create_swin)(teacher.config.id2label)
    processor = create_processor(model.config.image_size)
    preprocessing = describe(processor, model.config)
    pixels, labels = read_images(arguments.images / "fashion.train.npz", preprocessing)
    test = read_images(arguments.images / "fashion.test.npz", preprocessing)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{arguments.family}: {parameters:,} parameters; {len(pixels):,} images to train on")

    if arguments.family == "deit":
        teacher_preprocessing = open_image_processor(arguments.teacher, teacher.config)
        teacher_labels = predict(teacher, read_images(arguments.images / "fashion.train.npz", teacher_preprocessing)[0])
        train(model, (pixels, labels, teacher_labels), distillation_loss, arguments)
    else:
        train(model, (pixels, labels, labels), label_loss, arguments)

    model.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)
    found = accuracy(model, zip(*(part.split(250) for part in test), strict=True))
    print(f"saved to {arguments.output}; {100 * found.top1:.2f} % of {found.images:,} test images")


if __name__ == "__main__":
    main()
