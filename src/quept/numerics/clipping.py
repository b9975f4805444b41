"""Search for the clip ratios that training starts from."""

import torch
from torch import Tensor

from quept.numerics import affine

NARROWEST, CANDIDATES = 0.35, 27  # shares from the whole range down, 0.025 apart


def best_clip_ratio(grouped: Tensor, bits: int, importance: Tensor, symmetric: bool = False) -> Tensor:
    """Return the share of each group's range that rounds with the least weighted squared error, `(out, groups, 1)`.

    `importance`, `(1, groups, inputs)`, weighs the squared errors: the inputs' mean squares make the sum an estimate
    of the output error. Both ends of a range get the same share. Where two are as good, the wider one is taken.
    """
    low, high = affine.min_max(grouped)
    best = torch.ones_like(low)
    least = torch.full_like(low, torch.inf)
    for clip_ratio in torch.linspace(1.0, NARROWEST, CANDIDATES, dtype=torch.float32).tolist():
        to = affine.grid_between(low * clip_ratio, high * clip_ratio, bits, symmetric)
        error = ((affine.fake_quantize(grouped, to) - grouped).square_() * importance).sum(-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        best = best.masked_fill(better, clip_ratio)
    return best
