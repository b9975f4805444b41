"""Rounding on a fixed grid with error feedback, as in GPTQ (arXiv 2210.17323): weights make up for errors of others.

The error that counts is that of a layer's outputs, `(Q - W) X`, whose square is a quadratic form of the inputs' second
moments. Weights are rounded input by input; after each, those not yet rounded move to where they lower that form most.
"""

import torch
from torch import Tensor

DAMPING = 0.01  # of the mean second moment, added to all: inputs that were seen once must not decide
BLOCK = 128  # inputs whose changes to all that follow them are made together


@torch.no_grad()
def round_with_feedback(weight: Tensor, scale: Tensor, highest: int, rows: Tensor) -> Tensor:
    """Return codes, `(out, in)` float32, from `-highest` to `highest`, for a weight `(out, in)` float32.

    Args:
        weight: The weight.
        scale: The step of each weight, broadcast to `(out, in)`.
        highest: The highest code.
        rows: Inputs of the layer, `(tokens, in)`.
    """
    factor = _inverse_factor(rows)
    rest, scale = weight.to(torch.float64, copy=True), scale.to(torch.float64).expand_as(weight)
    codes = torch.empty_like(rest)
    for start in range(0, weight.shape[1], BLOCK):
        end = min(start + BLOCK, weight.shape[1])
        errors = torch.empty_like(rest[:, start:end])
        for column in range(start, end):
            codes[:, column] = (rest[:, column] / scale[:, column]).round_().clamp_(-highest, highest)
            error = (rest[:, column] - codes[:, column] * scale[:, column]) / factor[column, column]
            rest[:, column + 1 : end] -= torch.outer(error, factor[column, column + 1 : end])
            errors[:, column - start] = error
        rest[:, end:] -= errors @ factor[start:end, end:]
    return codes.to(torch.float32)


def _inverse_factor(rows: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of the inputs' damped second moments, `(in, in)` float64."""
    given = rows.to(torch.float64)
    moments = given.T @ given / len(rows)
    mean = float(moments.diagonal().mean())
    moments.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
