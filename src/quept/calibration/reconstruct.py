"""Block-wise reconstruction with multi-tier sampling (method, section on reconstruction).

Each step draws one width from each bit group that takes part, runs the block at each on the group's quantized stream,
and lowers the sum of the errors to the full-precision block's output on the full-precision stream.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quept.calibration.block import CalibrationBlock
from quept.calibration.clock import Clock
from quept.calibration.forward import ForwardPass
from quept.calibration.mixing import Mixture, draw_mixture
from quept.calibration.objective import Error, Objective, Rows
from quept.calibration.optimizer import BlockOptimizer
from quept.calibration.stream import Stream
from quept.calibration.workers import WorkerPool
from quept.config import Recipe, Reconstruction
from quept.errors import CalibrationFailed
from quept.numerics import adaround

# The rounding policy's regulariser (AdaRound): its weight, and how its sharpness falls over the training.
UNDECIDED_WEIGHT = 0.01
SHARPNESS_FIRST, SHARPNESS_LAST = 20.0, 2.0
TINY = 1e-12  # losses are divided by no less


@dataclass(frozen=True)
class _GroupPass:
    """One pass of a step: a batch through the block at the widths drawn for one bit group."""

    group: int
    mixture: Mixture
    half: bool  # whether products are made in bfloat16


def reconstruct(
    block: CalibrationBlock,
    inputs: Sequence[Stream],
    targets: Stream,
    groups: Sequence[Sequence[int]],
    settings: Reconstruction,
    objective: Objective,
    forward: ForwardPass,
    generator: torch.Generator,
    clock: Clock,
    on_step: Callable[[int, int, float], None],
    workers: WorkerPool | None = None,
) -> None:
    """Train what a block's linears learn, in place; `inputs` holds the stream of each bit group.

    `groups` are those to train, high to low; an empty one takes no part. `on_step` is told the step, the number of
    steps and the loss. The passes of a step run side by side as `workers` allows. Raises `CalibrationFailed` on a
    non-finite loss.
    """
    workers = workers or WorkerPool()
    steps = count_steps(targets.samples, settings) if any(groups) else 0
    if not steps:
        return
    draws = expected_draws(groups, settings, steps)
    learned = {bits for bits, count in draws.items() if count}
    mixing = torch.Generator().manual_seed(
        generator.initial_seed() + 1
    )  # its own: widths that are not mixed train alike
    descent = BlockOptimizer(block.linears.values(), block.quantizers, settings, steps, draws)
    replicas = [block, *(block.replica() for _ in groups[1:])]
    first, step = dict[int, float](), 0

    def run(group_pass: _GroupPass) -> tuple[float, Sequence[Tensor | None]]:
        """The loss of one pass, and the gradients of all that trains."""
        replica, hidden = replicas[group_pass.group], inputs[group_pass.group].read(rows)
        loss = _loss(replica, hidden, group_pass, learned, errors[group_pass.half].result, forward, step / steps)
        value = _finite(loss.item(), block, group_pass.mixture.bits)
        scale = first.setdefault(group_pass.mixture.bits, max(value, TINY)) if settings.normalized else 1.0
        return value / scale, torch.autograd.grad(loss / scale, descent.trained, allow_unused=True)

    with forward.in_force():
        for _ in range(settings.epochs):
            order = torch.randperm(targets.samples, generator=generator).tolist()
            # A last batch that is not full is left out: another order leaves out others, and compiled code has one
            # shape.
            for batch in range(steps // settings.epochs):
                rows = order[batch * settings.batch_size :][: settings.batch_size]
                with clock("forward and backward"):
                    group_passes = [
                        _GroupPass(index, draw_mixture(block, bits, settings, mixing), bits in settings.bfloat16_bits)
                        for index, group in enumerate(groups)
                        if group and settings.takes_part(index, step)
                        for bits in [draw(group, generator)]
                    ]
                    target = targets.read(rows)
                    compare = partial(_compare, objective, target, rows)
                    errors = {half: workers.start(compare, half) for half in {each.half for each in group_passes}}
                    results = workers.map(run, group_passes, in_turn=forward.compiles and step == 0)
                with clock("optimizer"):
                    descent.step([gradients for _, gradients in results])
                step += 1
                on_step(step, steps, sum(value for value, _ in results))


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
    group_pass: _GroupPass,
    learned: Collection[int],
    error: Callable[[], Error],
    forward: ForwardPass,
    progress: float,
) -> Tensor:
    """The error of the block at one width, plus the regulariser where the adapter is a rounding policy.

    Linears that the mixture has at another width learn at that one, if it is one of those `learned`.

    Each width's weights are put in place of the derived ones, and where tokens are rounded likewise: while it trains,
    the policy rounds softly, and a compiled pass must not depend on the width.
    """
    sharpness = SHARPNESS_FIRST + (SHARPNESS_LAST - SHARPNESS_FIRST) * progress
    penalty: Tensor | None = None
    bits, others = group_pass.mixture.bits, dict(group_pass.mixture.others)
    activation_bits, quantizers = block.recipe.activations.bits_for(bits), block.quantizers
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
                undecided = adaround.undecided(up, sharpness)
                penalty = undecided if penalty is None else penalty + undecided
            else:
                layer.override = forward.weight(layer, width)
        with block.multiplying(torch.bfloat16 if group_pass.half else None):
            output = forward(block.call, block.module, hidden)
    finally:
        for layer in block.linears.values():
            layer.override = None
        for each in quantizers:
            each.override = None
    with _autocast(hidden, group_pass.half):
        loss = error()(output)
    return loss if penalty is None else loss + UNDECIDED_WEIGHT * penalty


def _compare(objective: Objective, target: Tensor, rows: Rows, half: bool) -> Error:
    """The error that outputs for these samples have, as products in bfloat16 see the target or as others do."""
    with _autocast(target, half):
        return objective(target, rows)


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
