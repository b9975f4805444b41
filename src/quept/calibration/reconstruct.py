"""Block-wise reconstruction with multi-tier sampling (method, section on reconstruction).

Each step draws one width from each bit group, runs the block at each on the quantized stream, and lowers the sum of
the errors to the full-precision block's output on the full-precision stream.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from quept.calibration.block import CalibrationBlock
from quept.calibration.clock import Clock
from quept.calibration.stream import Stream
from quept.errors import CalibrationFailed
from quept.numerics import rounding
from quept.spec import BitGroups, Loss, Reconstruction

# The rounding policy's regulariser (AdaRound): its weight, and how its sharpness falls over the training.
UNDECIDED_WEIGHT = 0.01
SHARPNESS_FIRST, SHARPNESS_LAST = 20.0, 2.0

LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {"mae": F.l1_loss, "mse": F.mse_loss}


def reconstruct(
    block: CalibrationBlock,
    inputs: Sequence[Stream],
    targets: Stream,
    groups: BitGroups,
    settings: Reconstruction,
    generator: torch.Generator,
    clock: Clock,
    on_step: Callable[[int, int, float], None],
) -> None:
    """Train a block's adapters and clipping in place; `inputs` holds the stream of each bit group, high to low.

    `on_step` is told the step, the number of steps and the loss. Raises `CalibrationFailed` on a non-finite loss.
    """
    optimizer, schedule = _optimizer(block, settings, steps := count_steps(targets.samples, settings))
    step = 0
    for _ in range(settings.epochs):
        order = torch.randperm(targets.samples, generator=generator).tolist()
        for start in range(0, targets.samples, settings.batch_size):
            rows = order[start : start + settings.batch_size]
            target, total = targets.read(rows), 0.0
            for group, stream in zip(groups.groups, inputs, strict=True):
                bits = draw(group, generator)
                with clock("forward and backward"):
                    loss = _loss(block, stream.read(rows), target, bits, settings.loss, step / steps)
                    loss.backward()  # type: ignore[no-untyped-call]
                    total += _finite(loss.item(), block, bits)
            with clock("optimizer"):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            step += 1
            on_step(step, steps, total)
    block.module.requires_grad_(False)


def count_steps(samples: int, settings: Reconstruction) -> int:
    """Optimizer steps per block."""
    return settings.epochs * math.ceil(samples / settings.batch_size)


def draw(group: Sequence[int], generator: torch.Generator) -> int:
    """One width of a group, uniformly."""
    return group[int(torch.randint(len(group), (), generator=generator))]


def _loss(block: CalibrationBlock, hidden: Tensor, target: Tensor, bits: int, loss: Loss, progress: float) -> Tensor:
    """The error of the block at one width, plus the regulariser where the adapter is a rounding policy."""
    if not any(layer.trains_rounding for layer in block.linears.values()):
        return LOSSES[loss](block.run(hidden, bits).float(), target.float())
    # While it trains, the policy rounds softly; the widths' weights are put in place of the derived ones.
    sharpness = SHARPNESS_FIRST + (SHARPNESS_LAST - SHARPNESS_FIRST) * progress
    penalty = target.new_zeros(())
    try:
        for layer in block.linears.values():
            layer.override, up = layer.derive_soft(bits)
            penalty = penalty + rounding.undecided(up, sharpness)
        return LOSSES[loss](block.run(hidden, bits).float(), target.float()) + UNDECIDED_WEIGHT * penalty
    finally:
        for layer in block.linears.values():
            layer.override = None


def _optimizer(
    block: CalibrationBlock, settings: Reconstruction, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam over two parameter groups, each on a cosine to `final_learning_rate` of its start."""
    factors, clipping = [], []
    for layer in block.linears.values():
        layer_factors, layer_clipping = layer.trainable()
        factors += layer_factors
        clipping += layer_clipping
    for parameter in factors + clipping:
        parameter.requires_grad_(True)
    groups = [{"params": clipping, "lr": settings.clipping_learning_rate}]
    if factors:
        groups.append({"params": factors, "lr": settings.adapter_learning_rate})
    optimizer = torch.optim.Adam(groups, fused=True)
    last = settings.final_learning_rate

    def cosine(step: int) -> float:
        return last + (1 - last) * (1 + math.cos(math.pi * step / steps)) / 2

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)


def _finite(loss: float, block: CalibrationBlock, bits: int) -> float:
    if not math.isfinite(loss):
        raise CalibrationFailed(
            f"The reconstruction loss of block {block.path} at {bits} bits is {loss}. Lower the learning rates "
            "(reconstruction.adapter_learning_rate and clipping_learning_rate in the recipe), or leave this width out "
            "with --bits."
        )
    return loss
