"""Ideas from the literature that are not in the library, as patches around a calibration (docs/experiments.md).

Each is a context manager: calibrations within it follow the idea.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from quept.calibration import pipeline
from quept.calibration.capture import Entrance, Exit
from quept.calibration.objective import Objective, output_error, prediction_error
from quept.nn import ElasticLinear
from quept.numerics import affine


@contextmanager
def relative_to_token() -> Iterator[None]:
    """Errors divided by the size of their token's hidden state, so that tokens with large states do not dominate."""

    def relative(loss: str) -> Objective:
        def error(output: Tensor, target: Tensor) -> Tensor:
            size = target.square().mean(-1, keepdim=True).sqrt() + 1e-6
            return ((output - target) / size).square().mean()

        return error

    with patch.object(pipeline, "output_error", relative):
        yield


@contextmanager
def lookahead() -> Iterator[None]:
    """The error is measured behind the next block, which runs at full precision (cross-block reconstruction)."""
    calibrate_block = pipeline._Run._calibrate_block

    def remember(run: Any, index: int, *rest: Any) -> Any:
        run.index = index
        return calibrate_block(run, index, *rest)

    def objective(run: Any, last: bool) -> Objective:
        job, settings = run.job, run.recipe.reconstruction
        blocks = job.architecture.block_list(job.model)
        leave = prediction_error(Exit(job.model, job.architecture, job.compute_dtype, job.device))
        if last:
            return leave
        following = copy.deepcopy(blocks[run.index + 1]).to(torch.float32).requires_grad_(False)
        call = Entrance(job.model, job.architecture, job.compute_dtype).calls(job.windows)[run.index + 1]
        behind = leave if run.index + 2 == len(blocks) else output_error(settings.loss)
        return lambda output, target: behind(call(following, output), call(following, target).detach())

    with (
        patch.object(pipeline._Run, "_calibrate_block", remember),
        patch.object(pipeline._Run, "_objective", objective),
    ):
        yield


@contextmanager
def second_order() -> Iterator[None]:
    """Rounding offsets start from GPTQ's error feedback, as far as half a step allows."""
    place_ranges, learn_rounding = pipeline._Run._place_ranges, ElasticLinear.learn_rounding

    def keep_inputs(run: Any, block: Any, inputs: dict[str, Tensor]) -> None:
        place_ranges(run, block, inputs)
        for path, linear in block.linears.items():
            linear.hessian = inputs[path].T @ inputs[path]

    def start(linear: Any) -> dict[int, nn.Parameter]:
        offsets: dict[int, nn.Parameter] = learn_rounding(linear)
        for bits, offset in offsets.items():
            low, high = torch.sigmoid(linear.clipping[str(bits)]).unsqueeze(-1)
            to = affine.grid(linear._split(linear._master(), bits), bits, low, high)
            moved = feedback(linear._master(), linear.hessian, to, offset.shape[-1])
            offset.data.copy_((linear._split(moved - linear._master(), bits) / to.scale).clamp(-0.5, 0.5))
        return offsets

    with (
        patch.object(pipeline._Run, "_place_ranges", keep_inputs),
        patch.object(ElasticLinear, "learn_rounding", start),
    ):
        yield


@torch.no_grad()
def feedback(weight: Tensor, hessian: Tensor, to: affine.Grid, size: int) -> Tensor:
    """The weight as GPTQ has moved each column by the time it rounds it, `(out, in)`."""
    weight = weight.clone()
    damped = hessian + (0.01 * hessian.diagonal().mean() + 1e-8) * torch.eye(hessian.shape[0])
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    for column in range(weight.shape[1]):
        scale, zero = to.scale[:, column // size, 0], to.zero_point[:, column // size, 0]
        code = ((weight[:, column] / scale).round() + zero).clamp(0, to.maximum) - zero
        error = (weight[:, column] - code * scale) / factor[column, column]
        weight[:, column + 1 :] -= error.unsqueeze(1) * factor[column, column + 1 :]
    return weight


IDEAS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "relative to token": relative_to_token,
    "lookahead": lookahead,
    "second order": second_order,
}
