"""Block-wise reconstruction with multi-tier sampling (method, section on reconstruction).

Each step draws one bit-width from each bit group that takes part, runs the block at each on the group's quantized
stream, and lowers the sum of the errors to the full-precision block's output on the full-precision stream.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quept.calibration.block import CalibrationBlock
from quept.calibration.finite import loss_message
from quept.calibration.forward import ForwardPass
from quept.calibration.methods.base import ParameterGroup
from quept.calibration.mixing import Mixture, draw_mixture
from quept.calibration.objective import Error, Objective, Rows
from quept.calibration.optimizer import ADAM, BlockOptimizer
from quept.calibration.stream import Stream
from quept.calibration.tools import Tools
from quept.config import Recipe, Reconstruction, WeightSpec
from quept.errors import CalibrationFailed

TINY = 1e-12  # losses are divided by no less


@dataclass(frozen=True)
class Training:
    """The training of a block.

    Attributes:
        groups: the bit groups to train, high to low; an empty one takes no part.
        settings: schedule, batch size and learning rates.
        objective: the error to lower.
        generator: of batches and bit-widths.
        on_step: told the step, the number of steps and the loss.
    """

    groups: Sequence[Sequence[int]]
    settings: Reconstruction
    objective: Objective
    generator: torch.Generator
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None

    def steps(self, samples: int) -> int:
        """Return the optimizer steps; 0 where nothing trains."""
        return count_steps(samples, self.settings) if any(self.groups) else 0


@dataclass(frozen=True)
class _GroupPass:
    """One pass of a step: a batch through the block at the bit-widths drawn for one bit group."""

    group: int
    mixture: Mixture
    half: bool  # whether products are made in bfloat16


def reconstruct(
    block: CalibrationBlock, inputs: Sequence[Stream], targets: Stream, training: Training, tools: Tools
) -> None:
    """Train a block's linears and quantizers, in place; `inputs` holds the stream of each bit group.

    The passes of a step run side by side as workers allow. Raises `CalibrationFailed` on a non-finite loss.
    """
    settings, generator, steps = training.settings, training.generator, training.steps(targets.samples)
    if not steps:
        return
    draws = expected_draws(training.groups, settings, steps)
    trained = frozenset(bits for bits, count in draws.items() if count)
    # Mixtures have a generator of their own: bit-widths that are not mixed train alike with and without.
    mixing = torch.Generator().manual_seed(generator.initial_seed() + 1)
    optimizer = BlockOptimizer(_parameters(block, settings, draws), steps, settings.final_learning_rate)
    replicas = [block, *(block.replica() for _ in training.groups[1:])]
    first, step = dict[int, float](), 0

    def run(group_pass: _GroupPass) -> tuple[float, Sequence[Tensor | None]]:
        """Return the loss of one pass, and the gradients of all that trains."""
        replica, hidden = replicas[group_pass.group], inputs[group_pass.group].read(rows)
        error = errors[group_pass.half].result
        loss = _loss(replica, hidden, group_pass, trained, error, tools.forward, step / steps)
        value = _finite(loss.item(), replica, hidden, group_pass.mixture.bits)
        scale = first.setdefault(group_pass.mixture.bits, max(value, TINY)) if settings.normalized else 1.0
        return value / scale, torch.autograd.grad(loss / scale, optimizer.trained, allow_unused=True)

    with tools.forward.in_force():
        for _ in range(settings.epochs):
            order = torch.randperm(targets.samples, generator=generator).tolist()
            # A last batch that is not full is left out: another order leaves out others, and compiled code has one
            # shape.
            for batch in range(steps // settings.epochs):
                rows = order[batch * settings.batch_size :][: settings.batch_size]
                with tools.clock("forward and backward"):
                    passes = [
                        _GroupPass(index, draw_mixture(block, bits, settings, mixing), bits in settings.bfloat16_bits)
                        for index, group in enumerate(training.groups)
                        if group and settings.takes_part(index, step)
                        for bits in [draw(group, generator)]
                    ]
                    compare = partial(_compare, training.objective, targets.read(rows), rows)
                    errors = {half: tools.workers.start(compare, half) for half in {each.half for each in passes}}
                    results = tools.workers.map(run, passes, in_turn=tools.forward.compiles and step == 0)
                with tools.clock("optimizer"):
                    optimizer.step([gradients for _, gradients in results])
                step += 1
                training.on_step(step, steps, sum(value for value, _ in results))


def _parameters(
    block: CalibrationBlock, settings: Reconstruction, draws: Mapping[int, float]
) -> Iterator[ParameterGroup]:
    """Yield all that trains in a block: what methods learn about weights, and the ranges of activations."""
    for linear in block.trainable.values():
        yield from linear.trainable.parameters(settings, own_draws(linear.spec, draws))
    for quantizer in block.quantizers:
        ranges = [parameter.requires_grad_(True) for parameter in quantizer.trained().values()]
        yield ParameterGroup(ADAM, settings.activation_learning_rate, ranges)


def count_steps(samples: int, settings: Reconstruction) -> int:
    """Return the optimizer steps per block; one an epoch where there are fewer samples than a batch holds."""
    return settings.epochs * max(1, samples // settings.batch_size)


def trained_tokens(recipe: Recipe, sequence_length: int) -> int:
    """Return the tokens that pass forward and backward through one block, counted once per bit-width they pass at."""
    settings, samples = recipe.reconstruction, recipe.data.samples
    steps = count_steps(samples, settings)
    passes = sum(expected_draws(recipe.trained_groups, settings, steps).values())
    return round(passes * min(samples, settings.batch_size) * sequence_length)


def expected_draws(groups: Sequence[Sequence[int]], settings: Reconstruction, steps: int) -> dict[int, float]:
    """Return in how many of `steps` steps each bit-width is drawn, on average."""
    return {
        bits: sum(settings.takes_part(index, step) for step in range(steps)) / len(group)
        for index, group in enumerate(groups)
        for bits in group
    }


def own_draws(spec: WeightSpec, draws: Mapping[int, float]) -> Mapping[int, float]:
    """Return in how many steps a linear takes part at each of its bit-widths.

    One that is fixed takes part at its own whatever is drawn, several times in a step, so that this is an upper bound.
    """
    return {bits: sum(draws.values()) for bits in spec.groups.bits} if spec.fixed else draws


def draw(group: Sequence[int], generator: torch.Generator) -> int:
    """Draw one bit-width of a group, uniformly."""
    return group[int(torch.randint(len(group), (), generator=generator))]


def _loss(
    block: CalibrationBlock,
    hidden: Tensor,
    group_pass: _GroupPass,
    trained: Collection[int],
    error: Callable[[], Error],
    forward: ForwardPass,
    progress: float,
) -> Tensor:
    """Return the error of the block at the bit-widths of a pass, plus the methods' regularisers.

    Linears that the mixture has at another bit-width learn at that one, if it is one of those `trained`. Derived
    weights and grids are put in the layers before the block runs: compiled code must not depend on the bit-width.
    """
    bits, others = group_pass.mixture.bits, dict(group_pass.mixture.others)
    activation_bits, quantizers = block.recipe.activations.bits_for(bits), block.quantizers
    penalties: list[Tensor] = []
    try:
        for each in quantizers:
            each.override = None if activation_bits is None else each.grid(activation_bits)
        for path, linear in block.trainable.items():
            given = others.get(path, bits)
            own = linear.spec.bits_for(given)
            weight = forward.weight(linear.trainable, own)
            learns = own != linear.spec.store.master_bits if linear.spec.fixed else own == given and own in trained
            # Bit-widths that do not train stay as they are, and yet look to compiled code like all the others.
            linear.current = weight if learns else weight.detach().requires_grad_()
            if learns and (penalty := linear.trainable.penalty(progress)) is not None:
                penalties.append(penalty)
        with block.multiplying(torch.bfloat16 if group_pass.half else None):
            output = forward(block.call, block.module, hidden)
    finally:
        for linear in block.trainable.values():
            linear.current = None
        for each in quantizers:
            each.override = None
    with _autocast(hidden, group_pass.half):
        loss = error()(output)
    return sum(penalties, loss)


def _compare(objective: Objective, target: Tensor, rows: Rows, half: bool) -> Error:
    """Return the error of outputs for these samples; `half` compares as products in bfloat16 do."""
    with _autocast(target, half):
        return objective(target, rows)


def _autocast(hidden: Tensor, half: bool) -> torch.autocast:
    # Around errors alone: inside a block, attention in bfloat16 is slower on a CPU than in float32.
    return torch.autocast(hidden.device.type, torch.bfloat16, enabled=half)


def _finite(loss: float, block: CalibrationBlock, hidden: Tensor, bits: int) -> float:
    if not math.isfinite(loss):
        raise CalibrationFailed(loss_message(block, hidden, bits, loss))
    return loss
