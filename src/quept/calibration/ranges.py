"""Starting values of a block: the ranges of its weights and of its activations, and what methods start from."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from quept.calibration.block import CalibrationBlock
from quept.calibration.methods import Start
from quept.calibration.reconstruct import expected_draws, own_draws
from quept.calibration.trainable import TrainableLinear
from quept.calibration.workers import WorkerPool
from quept.config import Recipe
from quept.layers.quantizers import Quantizer, TensorQuantizer

ROWS = 4096  # of a linear's inputs, on which the range of a whole tensor is found


def observed_linears(block: CalibrationBlock) -> set[str]:
    """Return the linears whose inputs `init_ranges` needs a sample of."""
    recipe = block.recipe
    searches = recipe.reconstruction.clip_init == "search"
    has_tensor_ranges = bool(recipe.activations.bits) and recipe.activations.range == "tensor"
    return set(block.trainable) if searches or has_tensor_ranges else set()


@torch.no_grad()
def init_ranges(
    block: CalibrationBlock,
    inputs: Mapping[str, Tensor],
    generator: torch.Generator,
    workers: WorkerPool | None = None,
) -> None:
    """Set where training starts; weights at bit-widths that never train keep their range, whole or nearly so.

    `inputs` holds rows from in front of the linears, `(tokens, in)`, by path. Linears are searched side by side as
    `workers` allow.
    """
    recipe, workers = block.recipe, workers or WorkerPool()
    rows = {path: block.multiplied(path, given) for path, given in inputs.items() if path in block.trainable}
    draws = expected_draws(recipe.trained_groups, recipe.reconstruction, 1)

    def init_weight(path: str) -> None:
        linear = block.trainable[path]
        bits = linear.spec.store.without_master(linear.spec.groups.bits)
        trains = own_draws(linear.spec, draws)
        idle = frozenset(each for each in bits if recipe.reconstruction.epochs > 0 and not trains[each])
        seen = rows.get(path)
        importance = None if seen is None else seen.square().mean(0)
        linear.trainable.init(Start(bits, idle, recipe.reconstruction.clip_init, importance, seen))

    workers.map(init_weight, block.trainable)
    for linear in block.trainable.values():
        linear.trainable.draw(generator)
    for each in block.inputs:
        consumers = {path: linear for path, linear in block.trainable.items() if linear.input is each}
        sample = next((rows[path] for path in consumers if path in rows), None)
        init_input_range(each.quantizer, sample, consumers.values(), recipe)
    for operands in block.operands:
        for quantizer in operands.quantizers():
            quantizer.init_range(recipe.activations.range_init)


def init_input_range(
    quantizer: Quantizer, sample: Tensor | None, consumers: Iterable[TrainableLinear], recipe: Recipe
) -> None:
    """Set where the ranges of a tensor start that linears multiply; `sample` are rows of it, `(tokens, in)`."""
    start: float | str = recipe.reconstruction.clip_init
    importance: Tensor | None = None
    if sample is not None:
        importance = torch.cat([linear.weight.float() for linear in consumers]).square().sum(0)
    if isinstance(quantizer, TensorQuantizer):
        start = recipe.activations.range_init
    quantizer.init_range(start, sample, importance)
