"""Perplexity of a causal language model over sliding windows."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from quept.devices import SHORT, threads, threads_for
from quept.errors import InvalidInput
from quept.evaluation.finite import check_full_precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tokens in one forward pass, unless the caller gives a batch size.
_TOKENS_PER_BATCH = 2048

# Logits converted to float32 at a time (64 MiB), so that a large vocabulary does not double the memory.
_LOGITS_PER_CHUNK = 1 << 24


@dataclass(frozen=True)
class Perplexity:
    """The quality of a model's predictions of a text.

    Attributes:
        value: The perplexity, e to the power of `negative_log_likelihood`; inf if that is not finite.
        tokens: Number of scored predictions.
        negative_log_likelihood: Mean over the scored predictions, in nats per token; inf if any of them is
            not finite.
    """

    value: float
    tokens: int
    negative_log_likelihood: float


@dataclass(frozen=True)
class _Window:
    start: int
    end: int
    first: int  # the first token whose prediction counts


def perplexity(
    model: "PreTrainedModel",
    tokens: torch.Tensor,
    *,
    sequence_length: int,
    stride: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_logits: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
) -> Perplexity:
    """Measure the perplexity of a causal language model on a token stream.

    A window of `sequence_length` tokens starts every `stride` tokens, and each prediction is scored once, in
    the first window that holds it together with some context. By default the windows do not overlap, which
    is how published tables are made: each scores its `sequence_length - 1` inner predictions. The last
    window may be shorter; it is scored too if it has at least 2 tokens.

    Args:
        model: A Transformers causal language model. It is evaluated in eval mode, on the device and in the
            dtype of its weights; its mode is restored afterwards.
        tokens: Token ids, integers of shape (tokens,), at least 2.
        sequence_length: Tokens per window, at least 2 and at most the model's `max_position_embeddings`.
        stride: Tokens from one window's start to the next, 1 to `sequence_length`, which is the default.
            Smaller ones give each prediction more context and cost more windows.
        batch_size: Windows per forward pass; by default about 2048 tokens. It does not change the result
            beyond rounding.
        progress: Called as (windows done, windows in total) after each forward pass.
        on_logits: Called with the ids `(windows, tokens)` and the logits `(windows, tokens, vocabulary)` of each.

    Returns:
        The perplexity; its value is inf, without an exception, when the losses of a quantized model are not finite.

    Raises:
        InvalidInput: Too few tokens, a number out of range, or a model that overflows at full precision; the layer is
            named.
    """
    stride = sequence_length if stride is None else stride
    _check_lengths(model, sequence_length, stride)
    _check_tokens(tokens)
    if batch_size is None:
        batch_size = max(1, _TOKENS_PER_BATCH // sequence_length)
    elif batch_size < 1:
        raise InvalidInput(f"The batch size is {batch_size} windows, but must be 1 or more.")

    windows = list(_windows(len(tokens), sequence_length, stride))
    total, done = 0.0, 0
    values = batch_size * sequence_length * getattr(model.config.get_text_config(), "hidden_size", SHORT)
    with eval_mode(model), torch.inference_mode(), threads(threads_for(values)):
        for batch in _batches(windows, batch_size):
            total += _negative_log_likelihood(model, tokens, batch, on_logits)
            done += len(batch)
            if progress is not None:
                progress(done, len(windows))
    return _result(total, sum(window.end - window.first for window in windows))


def _check_lengths(model: "PreTrainedModel", sequence_length: int, stride: int) -> None:
    if sequence_length < 2:
        raise InvalidInput(
            f"The sequence length is {sequence_length} tokens, but a window needs at least 2 to hold a "
            f"prediction: raise --sequence-length."
        )
    if not 1 <= stride <= sequence_length:
        raise InvalidInput(
            f"The stride is {stride} tokens, but must be in 1 to the sequence length {sequence_length}, lest "
            f"tokens be left out: change --stride or --sequence-length."
        )
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and sequence_length > limit:
        raise InvalidInput(
            f"The sequence length is {sequence_length} tokens, but the model takes at most {limit} (its "
            f"max_position_embeddings): lower --sequence-length."
        )


def _check_tokens(tokens: torch.Tensor) -> None:
    if tokens.dim() != 1 or tokens.is_floating_point():
        raise InvalidInput(
            f"The tokens are {tokens.dtype} of shape {tuple(tokens.shape)}, but must be integer ids of shape "
            f"(tokens,): pass one stream, such as token_stream returns."
        )
    if len(tokens) < 2:
        raise InvalidInput(f"The text has {len(tokens)} tokens, but a perplexity needs at least 2: give more text.")


def _windows(length: int, sequence_length: int, stride: int) -> Iterator[_Window]:
    scored = 0
    for start in range(0, length, stride):
        end = min(start + sequence_length, length)
        first = max(start + 1, scored)  # a window's first token has no context in it
        if first < end:
            yield _Window(start, end, first)
        if end == length:
            return
        scored = end


def _batches(windows: list[_Window], batch_size: int) -> Iterator[list[_Window]]:
    """Group windows of one length; only the last window can be shorter."""
    length = windows[0].end - windows[0].start
    whole = len(windows) - (windows[-1].end - windows[-1].start < length)
    for begin in range(0, whole, batch_size):
        yield windows[begin : min(begin + batch_size, whole)]
    if whole < len(windows):
        yield windows[whole:]


def _negative_log_likelihood(
    model: "PreTrainedModel",
    tokens: torch.Tensor,
    batch: list[_Window],
    on_logits: Callable[[torch.Tensor, torch.Tensor], None] | None,
) -> float:
    ids = torch.stack([tokens[window.start : window.end] for window in batch]).to(model.device, torch.int64)
    logits = model(input_ids=ids, use_cache=False).logits
    if on_logits is not None:
        on_logits(ids, logits)
    ids = ids.to(logits.device)
    losses = [
        functional.cross_entropy(scores.float(), targets, reduction="none")
        for index, window in enumerate(batch)
        for scores, targets in _chunks(logits[index], ids[index], window.first - window.start)
    ]
    # To the CPU first: not every accelerator has float64.
    total = torch.cat(losses).cpu().double().sum().item()
    if not math.isfinite(total):
        check_full_precision(model, logits, lambda: model(input_ids=ids, use_cache=False))
    return total


def _chunks(logits: torch.Tensor, ids: torch.Tensor, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pair the tokens of a window from `first` on with the logits that predict them, a few at a time."""
    rows = max(1, _LOGITS_PER_CHUNK // logits.shape[-1])
    for begin in range(first, len(ids), rows):
        end = min(begin + rows, len(ids))
        yield logits[begin - 1 : end - 1], ids[begin:end]


def _result(total: float, count: int) -> Perplexity:
    mean = total / count
    if not math.isfinite(mean):
        return Perplexity(math.inf, count, math.inf)
    try:
        return Perplexity(math.exp(mean), count, mean)
    except OverflowError:
        return Perplexity(math.inf, count, mean)


@contextmanager
def eval_mode(model: "PreTrainedModel") -> Iterator[None]:
    """Put a model into evaluation mode, and every module back into its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        # Module by module: model.train() would also switch those that were in eval mode.
        for module in training:
            module.training = True
