"""What a block's training lowers: the error of its output, and at the last block that of the model's predictions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from quept.calibration.capture import Exit
from quept.spec import Loss

Objective = Callable[[Tensor, Tensor], Tensor]  # output and target, (batch, tokens, hidden), to a scalar

LOGITS_PER_CHUNK = 1 << 25  # 128 MiB in float32
VALUES_IN_CACHE = 1 << 18  # 1 MiB in float32

LOSSES: dict[Loss, Objective] = {"mae": F.l1_loss, "mse": F.mse_loss}


def output_error(loss: Loss) -> Objective:
    """The mean error between hidden states."""
    return lambda output, target: LOSSES[loss](output.float(), target.float())


def prediction_error(leave: Exit) -> Objective:
    """KL(full precision || quantized) of the next-token distributions that follow from the last block's outputs.

    In nats per token. Logits are made for so many tokens at a time that a large vocabulary does not fill the memory,
    and where that takes more than one turn they are made again for the backward pass.
    """

    def some(output: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            expected = leave(target)
        total: Tensor = _Divergence.apply(leave(output).flatten(0, -2), expected.flatten(0, -2))  # type: ignore[no-untyped-call]
        return total

    def divergence(output: Tensor, target: Tensor) -> Tensor:
        batch, tokens, _ = output.shape
        size = max(1, LOGITS_PER_CHUNK // leave.vocabulary)
        parts = [
            part
            for rows in zip(*(torch.split(states, max(1, size // tokens)) for states in (output, target)), strict=True)
            for part in zip(*(torch.split(states, size, 1) for states in rows), strict=True)
        ]
        if len(parts) == 1:
            return some(output, target) / (batch * tokens)
        again = [checkpoint(some, *part, use_reentrant=False) for part in parts]
        return torch.stack(again).sum() / (batch * tokens)

    return divergence


class _Divergence(torch.autograd.Function):
    """The sum of KL(softmax(expected) || softmax(logits)) over rows `(tokens, vocabulary)`.

    Row by row in the cache, the gradient, `softmax(logits) - softmax(expected)`, falls out of the forward pass: several
    times faster than library calls that each pass over all logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, expected: Tensor) -> Tensor:
        gradient = torch.empty_like(logits)
        rows = max(1, (VALUES_IN_CACHE if logits.device.type == "cpu" else LOGITS_PER_CHUNK) // logits.shape[-1])
        total = logits.new_zeros((), dtype=torch.float32)
        for given, wanted, slope in zip(*(torch.split(t, rows) for t in (logits, expected, gradient)), strict=True):
            log_q, log_p = given.float().log_softmax(-1), wanted.float().log_softmax(-1)
            p = log_p.exp()
            total += (log_p.sub_(log_q).mul_(p)).sum()
            slope.copy_(log_q.exp_().sub_(p))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None
