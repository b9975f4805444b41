"""Multi-bit token merging (MB-ToMe): one stream of hidden states out of one output per bit group."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def selective(outputs: Tensor, kept: float, weights: Sequence[float]) -> Tensor:
    """Return the tokens least disturbed by quantization as the highest group has them, all others mixed of all groups.

    `outputs`: `(groups, batch, tokens, hidden)`, high to low. Per sample, the `kept` share of tokens with the
    highest cosine similarity between the highest and the lowest group takes the former as it is; ties go to the
    earlier token. `weights`, one per group, mix the rest. Returns `(batch, tokens, hidden)`.
    """
    highest, lowest = outputs[0], outputs[-1]
    similarity = F.cosine_similarity(highest.float(), lowest.float(), dim=-1)
    count = round(kept * similarity.shape[-1])
    chosen = similarity.argsort(dim=-1, descending=True, stable=True)[:, :count]
    keep = torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, chosen, True)
    return torch.where(keep.unsqueeze(-1), highest, mixture(outputs, weights))


def mixture(outputs: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted mean over groups; `(groups, batch, tokens, hidden)` to `(batch, tokens, hidden)`."""
    # In bfloat16, 0.3 + 0.3 + 0.4 is 1.002: the stream would grow with every block.
    exact = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    return torch.einsum("g,gbth->bth", exact.new_tensor(weights), exact).to(outputs.dtype)


def random_choice(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """Draw every token from one group; `(groups, batch, tokens, hidden)` to `(batch, tokens, hidden)`."""
    groups, batch, tokens, hidden = outputs.shape
    drawn = torch.randint(groups, (1, batch, tokens, 1), generator=generator).to(outputs.device)
    return outputs.gather(0, drawn.expand(1, batch, tokens, hidden)).squeeze(0)
