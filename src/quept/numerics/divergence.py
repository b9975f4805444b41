"""The Kullback-Leibler divergence between predictions, in the precisions that its users need.

All divergences of the package are computed here from logits: in float64 where they are reported, row by row in float32
where images are compared, and in float32 with a gradient where a block is trained.
"""

from typing import Any

import torch
from torch import Tensor

LOGITS_PER_CHUNK = 1 << 24  # logits converted at a time, so that a large vocabulary does not multiply the memory
LOGITS_IN_CACHE = 1 << 16  # the same on a CPU, where chunks that fit into the cache are several times faster
TRAINED_PER_CHUNK = 1 << 25  # 128 MiB in float32
TRAINED_IN_CACHE = 1 << 18  # 1 MiB in float32


def kl_terms(log_p: Tensor, log_q: Tensor, p: Tensor | None = None) -> Tensor:
    """Return `p (log p - log q)` elementwise; `p` may be given where it is known already."""
    return (log_p - log_q).mul_(log_p.exp() if p is None else p)


def total_kl(expected: Tensor, given: Tensor) -> float:
    """Return the sum over rows of KL(softmax(expected) || softmax(given)), in nats; both are logits, `(rows, classes)`.

    In float64: at eight bits a divergence is near the rounding error of float32.
    """
    chunk = LOGITS_IN_CACHE if expected.device.type == "cpu" else LOGITS_PER_CHUNK
    rows, total = max(1, chunk // expected.shape[-1]), 0.0
    for p, q in zip(torch.split(expected, rows), torch.split(given, rows), strict=True):
        total += kl_terms(p.double().log_softmax(-1), q.double().log_softmax(-1)).sum().item()
    return total


def row_kl(expected: Tensor, given: Tensor) -> Tensor:
    """Return KL(softmax(expected) || softmax(given)) of each row, `(rows,)` in float32; both `(rows, classes)`."""
    return kl_terms(expected.float().log_softmax(-1), given.float().log_softmax(-1)).sum(-1)


def trained_kl(logits: Tensor, log_p: Tensor) -> Tensor:
    """Return the sum over rows of KL(p || softmax(logits)), a float32 scalar with a gradient for `logits`.

    Both are `(rows, classes)`; `log_p` holds log-probabilities and gets no gradient.
    """
    total: Tensor = _TrainedKL.apply(logits, log_p)  # type: ignore[no-untyped-call]
    return total


class _TrainedKL(torch.autograd.Function):
    """Chunks of rows that fit into the cache; the forward pass also computes the gradient, `softmax(logits) - p`.

    This is several times faster than library calls that each pass over all logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, log_p: Tensor) -> Tensor:
        gradient = torch.empty_like(logits)
        rows = max(1, (TRAINED_IN_CACHE if logits.device.type == "cpu" else TRAINED_PER_CHUNK) // logits.shape[-1])
        total = logits.new_zeros((), dtype=torch.float32)
        for given, wanted, slope in zip(*(torch.split(t, rows) for t in (logits, log_p, gradient)), strict=True):
            log_q, p = given.float().log_softmax(-1), wanted.exp()
            total += kl_terms(wanted, log_q, p).sum()
            slope.copy_(log_q.exp_().sub_(p))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None
