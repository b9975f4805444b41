"""Token ids of a text source: windows for calibration, a stream for evaluation."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from quept.data.hub import Split
from quept.data.text import is_published, load_text, separator
from quept.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters tokenized at a time. A cut can change the tokens beside it, so this is more than the usual test sets hold:
# their tokens are then those of published results.
_PIECE = 1 << 21

# Calibration reads this many times the tokens that it keeps, so that its windows are a sample of more text.
_OVERSAMPLING = 4


def token_windows(
    source: str | Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    samples: int,
    spare: int = 0,
    sequence_length: int,
    seed: int,
    split: Split = "train",
    note: Callable[[str], None] = lambda text: None,
) -> torch.Tensor:
    """Draw calibration windows from a text source.

    The first `4 * samples * sequence_length` tokens of the source, or all if it has fewer, are cut into
    contiguous windows that do not overlap; a random subset of these is returned, in random order.

    Args:
        source: A text source, as for `load_text`.
        tokenizer: A Transformers tokenizer; no special tokens are added.
        samples: Number of windows, at least 1.
        spare: Further windows behind these, as far as there are any.
        sequence_length: Tokens per window, at least 1.
        seed: Decides which windows are drawn and in which order; 0 to 2**63 - 1.
        split: Split of a named data set.
        note: Told of documents without text, and of windows that repeat one token: both are left out.

    Returns:
        Token ids, int64 of shape (samples and up to `spare` more, sequence_length); equal for equal arguments.

    Raises:
        InvalidInput: Too little text, a number out of range, or a source that `load_text` refuses.
    """
    _check_at_least_one(samples=samples, sequence_length=sequence_length)
    if not 0 <= seed < 2**63:
        raise InvalidInput(f"The seed is {seed}, but must be in 0 to 2**63 - 1: choose another with --seed.")
    needed = samples * sequence_length
    empty = _Skipped()
    tokens = _tokenize(source, tokenizer, split, _OVERSAMPLING * needed, empty)
    if empty.documents:
        note(f"'{source}': {empty.documents} documents hold nothing but blanks; they are left out.")
    if len(tokens) < needed:
        raise InvalidInput(
            f"'{source}' holds {len(tokens)} tokens, but {samples} windows of {sequence_length} tokens need "
            f"{needed}: give more text, or lower --samples or --sequence-length."
        )
    count = len(tokens) // sequence_length
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    windows = tokens[: count * sequence_length].view(count, sequence_length)
    if sequence_length > 1:
        repeating = (windows == windows[:, :1]).all(1)
        if repeated := int(repeating.sum()):
            note(f"'{source}': {repeated} of {count} windows repeat one token; they are left out.")
            order = order[~repeating[order]]
    if len(order) < samples:
        raise InvalidInput(
            f"'{source}' holds {len(order)} windows of {sequence_length} tokens that do not repeat one token, but "
            f"{samples} are needed: give more text, or lower --samples."
        )
    return windows[order[: samples + spare]]


def token_stream(
    source: str | Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_tokens: int | None,
    split: Split = "test",
) -> torch.Tensor:
    """Tokenize all text of a source in order, for evaluation.

    Args:
        source: A text source, as for `load_text`.
        tokenizer: A Transformers tokenizer; no special tokens are added.
        max_tokens: Keep only this many tokens from the start, at least 1; None keeps all.
        split: Split of a named data set.

    Returns:
        Token ids, int64 of shape (tokens,), at least one.

    Raises:
        InvalidInput: No text, a number out of range, or a source that `load_text` refuses.
    """
    if max_tokens is not None:
        _check_at_least_one(max_tokens=max_tokens)
    tokens = _tokenize(source, tokenizer, split, max_tokens)
    if len(tokens) == 0:
        raise InvalidInput(f"'{source}' holds no text, so there is nothing to evaluate: give more text.")
    return tokens


def digest(samples: torch.Tensor) -> str:
    """Return the SHA-256, in hex, of token ids as little-endian int64, or floats as float32, without the shape."""
    dtype, order = (torch.float32, "<f4") if samples.is_floating_point() else (torch.int64, "<i8")
    data = samples.to("cpu", dtype).contiguous().numpy().astype(order, copy=False)
    return hashlib.sha256(data.tobytes()).hexdigest()


def _check_at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            flag = "--" + name.replace("_", "-")
            raise InvalidInput(f"{name} is {number}, but must be 1 or more: raise {flag}.")


def _tokenize(
    source: str | Path,
    tokenizer: "PreTrainedTokenizerBase",
    split: Split,
    limit: int | None,
    empty: "_Skipped | None" = None,
) -> torch.Tensor:
    """Return the tokens of a source, up to `limit`; with `empty`, documents of blanks are left out and counted."""
    parts: list[torch.Tensor] = []
    total = 0
    documents = load_text(source, split=split)
    if empty is not None and not is_published(source):
        documents = empty.skipped(documents)
    for piece in _pieces(_joined(documents, separator(source))):
        # Not verbose: the tokenizer would warn that a piece is longer than the model's context.
        ids = tokenizer(piece, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        parts.append(torch.tensor(ids, dtype=torch.int64))
        total += len(ids)
        if limit is not None and total >= limit:
            break
    return torch.cat(parts)[:limit] if parts else torch.empty(0, dtype=torch.int64)


class _Skipped:
    """Leaves out documents that hold nothing but blanks, and counts them."""

    def __init__(self) -> None:
        self.documents = 0

    def skipped(self, documents: Iterator[str]) -> Iterator[str]:
        """Yield the documents that hold text."""
        for document in documents:
            if document.strip():
                yield document
            else:
                self.documents += 1


def _joined(documents: Iterator[str], between: str) -> Iterator[str]:
    for index, document in enumerate(documents):
        yield between + document if index else document


def _pieces(texts: Iterator[str]) -> Iterator[str]:
    """Cut a text that comes in parts: after the first line end from `_PIECE` characters on.

    The cuts depend on the whole text alone, not on the parts that it comes in.
    """
    rest = ""
    for text in texts:
        rest += text
        start = 0
        while end := rest.find("\n", start + _PIECE - 1) + 1:
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest
