"""What a block's training lowers: the error of its output, and at the last block that of the model's predictions."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from quept.calibration.capture import Exit
from quept.spec import Loss

Objective = Callable[[Tensor, Tensor], Tensor]  # output and target, (batch, tokens, hidden), to a scalar

LOGITS_PER_CHUNK = 1 << 25  # 128 MiB in float32

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
            expected = leave(target).float().log_softmax(-1)
        return F.kl_div(leave(output).float().log_softmax(-1), expected, log_target=True, reduction="sum")

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
