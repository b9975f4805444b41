"""Where the ranges of a block start: those of its weights and those of its activations."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from quept.calibration.block import CalibrationBlock
from quept.calibration.reconstruct import expected_draws
from quept.calibration.workers import WorkerPool
from quept.config import Recipe
from quept.layers import ElasticLinear
from quept.layers.quantizers import Quantizer, TensorQuantizer
from quept.layers.weight import UNCLIPPED

ROWS = 4096  # of a linear's inputs, on which the range of a whole tensor is placed


def observed_linears(block: CalibrationBlock) -> set[str]:
    """The linears of whose inputs `init_ranges` needs a sample."""
    recipe = block.recipe
    wanted = set(block.linears) if recipe.reconstruction.clip_init == "search" else set()
    if recipe.activations.bits and recipe.activations.range == "tensor":
        wanted |= set(block.linears)
    return wanted


@torch.no_grad()
def init_ranges(block: CalibrationBlock, inputs: Mapping[str, Tensor], workers: WorkerPool | None = None) -> None:
    """Set where each width's ranges start; weights of widths that never train keep their whole range.

    `inputs` holds rows from in front of the linears, `(tokens, in)`, by path. Linears are searched side by side as
    `workers` allows.
    """
    recipe, workers = block.recipe, workers or WorkerPool()
    start = recipe.reconstruction.clip_init
    draws = expected_draws(recipe.trained_groups, recipe.reconstruction, 1)
    trained = recipe.reconstruction.epochs > 0
    rows = {path: block.multiplied(path, given) for path, given in inputs.items()}

    def place_weights(path: str) -> None:
        linear = block.linears[path]
        for bits in recipe.store.without_master(recipe.bits):
            if trained and not draws[bits]:
                linear.reset_clipping(bits, UNCLIPPED)
            elif start == "search":
                linear.search_clipping(bits, rows[path].square().mean(0))
            else:
                linear.reset_clipping(bits, start)

    workers.map(place_weights, block.linears)
    for each in block.inputs:
        readers = {path: linear for path, linear in block.linears.items() if linear.input is each}
        init_input_range(
            each.quantizer, next((rows[path] for path in readers if path in rows), None), readers.values(), recipe
        )
    for products in block.products:
        for quantizer in products.quantizers():
            quantizer.init_range(recipe.activations.range_init)


def init_input_range(
    quantizer: Quantizer, sample: Tensor | None, readers: Iterable[ElasticLinear], recipe: Recipe
) -> None:
    """Set where the ranges of the input of some linears start, on rows `(tokens, in)` of it where that takes any."""
    start: float | str = recipe.reconstruction.clip_init
    importance: Tensor | None = None
    if sample is not None:
        importance = torch.cat([linear.weight.float() for linear in readers]).square().sum(0)
    if isinstance(quantizer, TensorQuantizer):
        start = recipe.activations.range_init
    quantizer.init_range(start, sample, importance)
