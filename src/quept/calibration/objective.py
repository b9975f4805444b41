"""The objective of a block's training: the error of its output, or at the last block of the model's predictions."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from quept.calibration.capture import ModelHead
from quept.config import Loss
from quept.numerics.divergence import trained_kl

Rows = Sequence[int] | slice  # which samples
Error = Callable[[Tensor], Tensor]  # a block's output, (batch, tokens, hidden), to a scalar
Objective = Callable[[Tensor, Rows], Error]  # the samples' targets, (batch, tokens, hidden), to the error of outputs

LOGITS_PER_CHUNK = 1 << 25  # 128 MiB in float32

LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {"mae": F.l1_loss, "mse": F.mse_loss}


def output_error(loss: Loss) -> Objective:
    """Return the mean error between hidden states."""

    def objective(target: Tensor, rows: Rows) -> Error:
        return lambda output: LOSSES[loss](output.float(), target.float())

    return objective


def prediction_error(head: ModelHead, windows: Tensor | None = None, label_weight: float = 0.0) -> Objective:
    """KL(full precision || quantized) of the predictions that follow from the last block's outputs.

    In nats per prediction. With a `label_weight`, full precision's distribution is mixed with the token that does
    follow in `windows`, `(samples, tokens)`, which gets that share of it.
    Logits are made for so many tokens at a time that a large vocabulary does not fill the memory, and where that takes
    more than one turn they are made again for the backward pass.
    """

    def expected(target: Tensor, following: Tensor | None) -> Tensor:
        """Return the logarithm of the wanted distributions, `(tokens, vocabulary)`."""
        with torch.no_grad():
            wanted = head(target).flatten(0, -2).float().log_softmax(-1)
            return wanted if following is None else mixed(wanted, following.flatten().to(wanted.device), label_weight)

    def some(output: Tensor, target: Tensor, following: Tensor | None) -> Tensor:
        return trained_kl(head(output).flatten(0, -2), expected(target, following))

    def objective(target: Tensor, rows: Rows) -> Error:
        batch, tokens = target.shape[0], target.shape[1] if head.per_token else 1
        following = following_tokens(windows[rows]) if windows is not None and label_weight else None
        size = max(1, LOGITS_PER_CHUNK // head.classes)
        if batch * tokens <= size or not head.per_token:
            wanted = expected(target, following)  # once for all bit-widths
            return lambda output: trained_kl(head(output).flatten(0, -2), wanted) / (batch * tokens)

        def error(output: Tensor) -> Tensor:
            total = output.new_zeros((), dtype=torch.float32)
            for sample in range(batch):
                for start in range(0, tokens, size):
                    part = (slice(sample, sample + 1), slice(start, start + size))
                    chosen = (output[part], target[part], None if following is None else following[part])
                    # Nothing in it is random, and the generator's state is every thread's.
                    total = total + checkpoint(some, *chosen, use_reentrant=False, preserve_rng_state=False)
            return total / (batch * tokens)

        return error

    return objective


def following_tokens(windows: Tensor) -> Tensor:
    """Return the token that comes after each of `(samples, tokens)`; -1 after the last."""
    return F.pad(windows[:, 1:].to(torch.int64), (0, 1), value=-1)


def mixed(log_p: Tensor, following: Tensor, share: float) -> Tensor:
    """Return the logarithm of `(1 - share) p + share` at the following token; rows `(tokens, vocabulary)`, in place.

    Where nothing follows (-1), `p` is left alone.
    """
    known = following >= 0
    log_p += known.unsqueeze(1).to(log_p.dtype) * math.log1p(-share)
    place = (known.nonzero().squeeze(1), following[known])
    log_p[place] = torch.logaddexp(log_p[place], log_p.new_tensor(math.log(share)))
    return log_p
