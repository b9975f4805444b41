"""How far a quantized model's predictions are from full precision's, token by token."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quept.errors import InvalidInput

Logits = Callable[[Tensor], Tensor]  # token ids (batch, tokens) to logits (batch, tokens, vocabulary)

_TOKENS_PER_BATCH = 2048
_LOGITS_PER_CHUNK = 1 << 24
_LOGITS_IN_CACHE = 1 << 16  # of a CPU, where passing over so few at a time is several times faster


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


def total_kl(expected: Tensor, given: Tensor) -> float:
    """The sum over rows of KL(softmax(expected) || softmax(given)), in nats; both are logits, `(rows, classes)`.

    In float64: at eight bits a divergence is near what float32 rounds away. Some rows at a time, so that many classes
    do not multiply the memory.
    """
    chunk = _LOGITS_IN_CACHE if expected.device.type == "cpu" else _LOGITS_PER_CHUNK
    rows, total = max(1, chunk // expected.shape[-1]), 0.0
    for p, q in zip(torch.split(expected, rows), torch.split(given, rows), strict=True):
        log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        total += (log_p.exp() * (log_p - log_q)).sum().item()
    return total
