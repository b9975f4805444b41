"""Block-wise reconstruction with multi-tier sampling (method, section on reconstruction).

Each step draws one width from each bit group that takes part, runs the block at each on the group's quantized stream,
and lowers the sum of the errors to the full-precision block's output on the full-precision stream.
"""

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from quept.calibration.block import CalibrationBlock
from quept.calibration.clock import Clock
from quept.calibration.descent import Descent
from quept.calibration.mixing import Mixture, draw_mixture
from quept.calibration.objective import Error, Objective
from quept.calibration.passes import Pass
from quept.calibration.stream import Stream
from quept.errors import CalibrationFailed
from quept.numerics import rounding
from quept.spec import Recipe, Reconstruction

# The rounding policy's regulariser (AdaRound): its weight, and how its sharpness falls over the training.
UNDECIDED_WEIGHT = 0.01
SHARPNESS_FIRST, SHARPNESS_LAST = 20.0, 2.0
TINY = 1e-12  # losses are divided by no less


def reconstruct(
    block: CalibrationBlock,
    inputs: Sequence[Stream],
    targets: Stream,
    groups: Sequence[Sequence[int]],
    settings: Reconstruction,
    objective: Objective,
    forward: Pass,
    generator: torch.Generator,
    clock: Clock,
    on_step: Callable[[int, int, float], None],
) -> None:
    """Train what a block's linears learn, in place; `inputs` holds the stream of each bit group.

    `groups` are those to train, high to low; an empty one takes no part. `on_step` is told the step, the number of
    steps and the loss. Raises `CalibrationFailed` on a non-finite loss.
    """
    steps = count_steps(targets.samples, settings) if any(groups) else 0
    if not steps:
        return
    draws = expected_draws(groups, settings, steps)
    learned = {bits for bits, count in draws.items() if count}
    mixing = torch.Generator().manual_seed(
        generator.initial_seed() + 1
    )  # its own: widths that are not mixed train alike
    descent, first, step = (
        Descent(block.linears.values(), block.quantizers, settings, steps, draws),
        dict[int, float](),
        0,
    )
    for _ in range(settings.epochs):
        order = torch.randperm(targets.samples, generator=generator).tolist()
        # A last batch that is not full is left out: another order leaves out others, and compiled code has one shape.
        for batch in range(steps // settings.epochs):
            rows = order[batch * settings.batch_size :][: settings.batch_size]
            target, total = targets.read(rows), 0.0
            errors: dict[bool, Error] = {}  # of this batch, in bfloat16 or not
            for index, (group, stream) in enumerate(zip(groups, inputs, strict=True)):
                if not group or not settings.takes_part(index, step):
                    continue
                bits = draw(group, generator)
                mixture = draw_mixture(block, bits, settings, mixing)
                half = bits in settings.bfloat16_bits
                with clock("forward and backward"):
                    if half not in errors:
                        with _autocast(target, half):
                            errors[half] = objective(target, rows)
                    hidden = stream.read(rows)
                    loss = _loss(block, hidden, mixture, learned, half, errors[half], forward, step / steps)
                    value = _finite(loss.item(), block, bits)
                    scale = first.setdefault(bits, max(value, TINY)) if settings.normalized else 1.0
                    (loss / scale).backward()  # type: ignore[no-untyped-call]
                    total += value / scale
            with clock("optimizer"):
                descent.step()
            step += 1
            on_step(step, steps, total)


def count_steps(samples: int, settings: Reconstruction) -> int:
    """Optimizer steps per block; one an epoch where there are fewer samples than a batch holds."""
    return settings.epochs * max(1, samples // settings.batch_size)


def trained_tokens(recipe: Recipe, sequence_length: int) -> int:
    """Tokens that pass forward and backward through one block, each counted once per width it passes at."""
    settings, samples = recipe.reconstruction, recipe.data.samples
    steps = count_steps(samples, settings)
    passes = sum(expected_draws(recipe.trained_groups, settings, steps).values())
    return round(passes * min(samples, settings.batch_size) * sequence_length)


def expected_draws(groups: Sequence[Sequence[int]], settings: Reconstruction, steps: int) -> dict[int, float]:
    """In how many of `steps` steps each width is drawn, on average."""
    return {
        bits: sum(settings.takes_part(index, step) for step in range(steps)) / len(group)
        for index, group in enumerate(groups)
        for bits in group
    }


def draw(group: Sequence[int], generator: torch.Generator) -> int:
    """One width of a group, uniformly."""
    return group[int(torch.randint(len(group), (), generator=generator))]


def _loss(
    block: CalibrationBlock,
    hidden: Tensor,
    mixture: Mixture,
    learned: Collection[int],
    half: bool,
    error: Error,
    forward: Pass,
    progress: float,
) -> Tensor:
    """The error of the block at one width, plus the regulariser where the adapter is a rounding policy.

    Linears that the mixture has at another width learn at that one, if it is one of those `learned`.

    Each width's weights are put in place of the derived ones, and where tokens are rounded likewise: while it trains,
    the policy rounds softly, and a compiled pass must not depend on the width. With `half`, matrix products are made in
    bfloat16.
    """
    sharpness = SHARPNESS_FIRST + (SHARPNESS_LAST - SHARPNESS_FIRST) * progress
    penalty: Tensor | None = None
    bits, others = mixture.bits, dict(mixture.others)
    activation_bits, quantizers = block.recipe.activations.beside(bits), block.quantizers
    try:
        for each in quantizers:
            each.override = None if activation_bits is None else each.grid(activation_bits)
        for path, layer in block.linears.items():
            width = others.get(path, bits)
            if width not in learned:
                # It stays as it is, and yet looks to the compiled pass like all the others.
                layer.override = forward.weight(layer, width).detach().requires_grad_()
            elif layer.trains_softly(width):
                layer.override, up = layer.derive_soft(width)
                undecided = rounding.undecided(up, sharpness)
                penalty = undecided if penalty is None else penalty + undecided
            else:
                layer.override = forward.weight(layer, width)
        with block.multiplying(torch.bfloat16 if half else None):
            output = forward(block.call, block.module, hidden)
    finally:
        for layer in block.linears.values():
            layer.override = None
        for each in quantizers:
            each.override = None
    with _autocast(hidden, half):
        loss = error(output)
    return loss if penalty is None else loss + UNDECIDED_WEIGHT * penalty


def _autocast(hidden: Tensor, half: bool) -> torch.autocast:
    # Around errors alone: inside a block, attention in bfloat16 is slower on a CPU than in float32.
    return torch.autocast(hidden.device.type, torch.bfloat16, enabled=half)


def _finite(loss: float, block: CalibrationBlock, bits: int) -> float:
    if not math.isfinite(loss):
        raise CalibrationFailed(
            f"The reconstruction loss of block {block.path} at {bits} bits is {loss}. Lower the learning rates "
            "(reconstruction.adapter_learning_rate and clipping_learning_rate in the recipe), or leave this width out "
            "with --bits."
        )
    return loss
