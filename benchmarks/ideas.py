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

from quept.calibration import descent, pipeline
from quept.calibration.capture import ModelStem
from quept.calibration.objective import Error, Objective, Rows
from quept.layers import ElasticLinear
from quept.numerics import affine


@contextmanager
def relative_to_token() -> Iterator[None]:
    """Errors divided by the size of their token's hidden state, so that tokens with large states do not dominate."""

    def relative(loss: str) -> Objective:
        def objective(target: Tensor, rows: Rows) -> Error:
            size = target.square().mean(-1, keepdim=True).sqrt() + 1e-6
            return lambda output: ((output - target) / size).square().mean()

        return objective

    with patch.object(pipeline, "output_error", relative):
        yield


@contextmanager
def lookahead() -> Iterator[None]:
    """The error is measured behind the next block, which runs at full precision (cross-block reconstruction)."""
    calibrate_block = pipeline._Run._calibrate_block

    def remember(run: Any, index: int, *rest: Any) -> Any:
        run.index = index
        return calibrate_block(run, index, *rest)

    objectives = pipeline._Run._objectives

    def behind_next(run: Any, last: bool) -> tuple[Objective, Objective]:
        if last:
            return objectives(run, last)
        job = run.job
        blocks = job.architecture.block_list(job.model)
        following = copy.deepcopy(blocks[run.index + 1]).to(job.device, job.compute_dtype).requires_grad_(False)
        call = (
            ModelStem(job.model, job.architecture, job.compute_dtype).calls(job.samples)[run.index + 1].to(job.device)
        )

        def behind(objective: Objective) -> Objective:
            def error(target: Tensor, rows: Rows) -> Error:
                with torch.no_grad():
                    measure = objective(call(following, target), rows)
                return lambda output: measure(call(following, output))

            return error

        trained, reported = objectives(run, run.index + 2 == len(blocks))
        return behind(trained), behind(reported)

    with (
        patch.object(pipeline._Run, "_calibrate_block", remember),
        patch.object(pipeline._Run, "_objectives", behind_next),
    ):
        yield


@contextmanager
def second_order() -> Iterator[None]:
    """Rounding offsets start from GPTQ's error feedback, as far as half a step allows."""
    init_ranges, learn_rounding = pipeline.init_ranges, ElasticLinear.learn_rounding

    def keep_inputs(block: Any, inputs: dict[str, Tensor]) -> None:
        init_ranges(block, inputs)
        for path, linear in block.linears.items():
            linear.hessian = inputs[path].float().T @ inputs[path].float()

    def start(linear: Any) -> dict[int, nn.Parameter]:
        offsets: dict[int, nn.Parameter] = learn_rounding(linear)
        for bits, offset in offsets.items():
            low, high = linear.clip_ratios(bits).unsqueeze(-1)
            to = affine.grid(linear._split(linear._master(), bits), bits, low, high)
            moved = feedback(linear._master(), linear.hessian, to, offset.shape[-1])
            offset.data.copy_((linear._split(moved - linear._master(), bits) / to.scale).clamp(-0.5, 0.5))
        return offsets

    with (
        patch.object(pipeline, "init_ranges", keep_inputs),
        patch.object(ElasticLinear, "learn_rounding", start),
    ):
        yield


@torch.no_grad()
def feedback(weight: Tensor, hessian: Tensor, to: affine.Grid, size: int) -> Tensor:
    """The weight as GPTQ has moved each column by the time it rounds it, `(out, in)`."""
    weight = weight.clone()
    damped = hessian + (0.01 * hessian.diagonal().mean() + 1e-8) * torch.eye(len(hessian), device=hessian.device)
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    for column in range(weight.shape[1]):
        scale, zero = to.scale[:, column // size, 0], to.zero_point[:, column // size, 0]
        code = ((weight[:, column] / scale).round() + zero).clamp(0, to.maximum) - zero
        error = (weight[:, column] - code * scale) / factor[column, column]
        weight[:, column + 1 :] -= error.unsqueeze(1) * factor[column, column + 1 :]
    return weight


@contextmanager
def sign_descent() -> Iterator[None]:
    """Rounding offsets follow the sign of their gradient, one over the number of steps at a time (SignRound)."""

    def move(_: Any, offset: Tensor, gradient: Tensor, rate: float) -> None:
        offset.add_(gradient.sign_(), alpha=-rate / descent.TRAVEL).clamp_(-descent.REACH, descent.REACH)

    with patch.object(descent.RoundingOptimizer, "_move", move):
        yield


@contextmanager
def free_weights() -> Iterator[None]:
    """Weights may move to any code (EfficientQAT); each width keeps codes of its own instead of a plane."""
    kept: dict[tuple[str, int], Tensor] = {}
    freeze, derive = ElasticLinear.freeze, ElasticLinear.derive

    def keep(linear: Any) -> None:
        for bits, offset in linear.offsets.items():
            kept[linear.path, bits] = derive(linear, bits).detach().clone()
            offset.data.clamp_(-0.5, 0.5)
        freeze(linear)

    def derived(linear: Any, bits: int) -> Tensor:
        if linear.offsets or (linear.path, bits) not in kept:
            return derive(linear, bits)
        return kept[linear.path, bits].to(linear.dtype)

    with (
        patch.object(descent, "REACH", 4.0),
        patch.object(ElasticLinear, "freeze", keep),
        patch.object(ElasticLinear, "derive", derived),
    ):
        yield


IDEAS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "relative to token": relative_to_token,
    "lookahead": lookahead,
    "second order": second_order,
    "sign descent": sign_descent,
    "free weights": free_weights,
}
