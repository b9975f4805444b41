"""The divergence of a quantized model's predictions from those of full precision, token by token."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quept.errors import InvalidInput
from quept.numerics.divergence import total_kl

Logits = Callable[[Tensor], Tensor]  # token ids (batch, tokens) to logits (batch, tokens, vocabulary)

_TOKENS_PER_BATCH = 2048


@dataclass(frozen=True)
class Divergence:
    """Means over the tokens of a text.

    Attributes:
        kl: KL(reference || model) of the next-token distributions, in nats per token; zero where they are the same.
        top1_agreement: Share of tokens after which both think the same next token likeliest.
        tokens: How many predictions were compared.
    """

    kl: float
    top1_agreement: float
    tokens: int


@torch.inference_mode()
def divergence(
    reference: Logits,
    model: Logits,
    tokens: Tensor,
    *,
    sequence_length: int,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Divergence:
    """Compare two models' predictions on windows of a token stream that do not overlap.

    Args:
        reference: Gives the logits of full precision for token ids; called right before `model` for each batch.
        model: Gives the logits of the quantized model.
        tokens: Token ids, integers of shape (tokens,); what does not fill a window is left out.
        sequence_length: Tokens per window; every position of a window is compared.
        batch_size: Windows per forward pass; by default about 2048 tokens.
        progress: Called as (windows done, windows in total).

    Raises:
        InvalidInput: The stream does not fill one window.
    """
    count = len(tokens) // sequence_length
    if not count:
        raise InvalidInput(f"The text has {len(tokens)} tokens, fewer than one window of {sequence_length}.")
    windows = tokens[: count * sequence_length].view(count, sequence_length).to(torch.int64)
    batch_size = batch_size or max(1, _TOKENS_PER_BATCH // sequence_length)
    kl, same = 0.0, 0
    for start in range(0, count, batch_size):
        batch = windows[start : start + batch_size]
        expected, given = reference(batch), model(batch)
        kl += total_kl(expected.flatten(0, 1), given.flatten(0, 1))
        same += int((expected.argmax(-1) == given.argmax(-1)).sum())
        if progress is not None:
            progress(min(start + batch_size, count), count)
    return Divergence(kl / windows.numel(), same / windows.numel(), windows.numel())
