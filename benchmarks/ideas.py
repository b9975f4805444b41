"""Ideas from the literature that are not in the library, as patches around a calibration (docs/experiments.md).

Each is a context manager: calibrations within it follow the idea.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from quept.calibration import optimizer, pipeline
from quept.calibration.capture import ModelStem
from quept.calibration.methods import ROUNDING_METHODS, Clipping, LearnedRounding, Start
from quept.calibration.methods.learned_rounding import TRAVEL
from quept.calibration.objective import Error, Objective, Rows
from quept.formats.derivation import derive
from quept.layers.weight import FrozenWeight
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


class SecondOrder(LearnedRounding):
    """Rounding offsets start from GPTQ's error feedback, as far as half a step allows."""

    @torch.no_grad()
    def init(self, start: Start) -> None:
        """Start from the feedback of the inputs that `second_order` has kept."""
        super().init(start)
        weight, master = self.weight, self.weight.float_master()
        for bits, offset in self.offsets.items():
            inputs = weight.inputs_per_scale(bits)
            ratios = weight.method(Clipping).ratios(bits)
            derived = derive(master, bits, inputs, clip_ratios=ratios, symmetric=weight.is_symmetric(bits))
            moved = feedback(master, HESSIANS[weight.path], derived.grid, inputs)
            offset.copy_((affine.split_groups(moved - master, inputs) / derived.grid.scale).clamp(-0.5, 0.5))


HESSIANS: dict[str, Tensor] = {}  # of each linear's inputs, by path


@contextmanager
def second_order() -> Iterator[None]:
    """Start rounding offsets from GPTQ's error feedback."""
    init_ranges = pipeline.init_ranges

    def keep_inputs(block: Any, inputs: dict[str, Tensor], *rest: Any) -> None:
        for path, rows in inputs.items():
            HESSIANS[block.trainable[path].path] = rows.float().T @ rows.float()
        init_ranges(block, inputs, *rest)

    with patch.object(pipeline, "init_ranges", keep_inputs), patch.dict(ROUNDING_METHODS, {"offsets": SecondOrder}):
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
        offset.add_(gradient.sign_(), alpha=-rate / TRAVEL).clamp_(-optimizer.REACH, optimizer.REACH)

    with patch.object(optimizer.RoundingOptimizer, "_move", move):
        yield


@contextmanager
def free_weights() -> Iterator[None]:
    """Weights may move to any code (EfficientQAT); each bit-width keeps codes of its own instead of a mask."""
    kept: dict[tuple[str, int], Tensor] = {}
    freeze, derive_frozen = LearnedRounding.freeze, FrozenWeight.derive

    def keep(method: LearnedRounding, frozen: FrozenWeight) -> None:
        for bits, offset in method.offsets.items():
            kept[frozen.path, bits] = method.weight.derive(bits).detach().clone()
            offset.data.clamp_(-0.5, 0.5)
        freeze(method, frozen)

    def derived(frozen: FrozenWeight, bits: int) -> Tensor:
        found = kept.get((frozen.path, bits))
        return derive_frozen(frozen, bits) if found is None else found.to(frozen.dtype)

    with (
        patch.object(optimizer, "REACH", 4.0),
        patch.object(LearnedRounding, "freeze", keep),
        patch.object(FrozenWeight, "derive", derived),
    ):
        yield


IDEAS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "relative to token": relative_to_token,
    "lookahead": lookahead,
    "second order": second_order,
    "sign descent": sign_descent,
    "free weights": free_weights,
}
