"""A key-value cache that is stored packed, at the bit-widths of the model's `KeyValues`.

Keys and values are rotated and quantized once, when a token is stored, at the bit-width that the layer has at this
moment; a later change of the bit-width leaves stored tokens as they are. Each layer hands out dequantized, still
rotated tensors of its tokens, and the attention rotates only its queries. A layer without a bit-width stores plain
tensors, and nothing about it is rotated until it first has one.

With all tokens stored at one bit-width, generation equals, bit for bit in the keys and values that the attention sees,
generation with a plain cache under the simulation in `quept.attention`.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from quept.attention import ATTRIBUTE, is_installed
from quept.errors import InvalidInput
from quept.generation.segment import Segment
from quept.layers.keyvalues import KeyValues


class KeyValueCache(Cache):  # type: ignore[misc]
    """Give it to `model.generate(..., cache=KeyValueCache(model))`, or to the model itself.

    Before transformers 5.24 the argument is called `past_key_values`; `cache_arguments` gives it by either name.

    The last `recent` tokens are kept, and used, in the model's dtype; they are quantized when newer ones follow. Raises
    `InvalidInput` for a model whose attention has no `KeyValues` in force, and for a `recent` below zero.
    """

    def __init__(self, model: Any, recent: int = 0) -> None:
        if isinstance(recent, bool) or not isinstance(recent, int) or recent < 0:
            raise InvalidInput(f"recent={recent!r} is no number of tokens to keep unquantized; give 0 or more.")
        found = {
            module.layer_idx: getattr(module, ATTRIBUTE)
            for module in model.modules()
            if isinstance(getattr(module, ATTRIBUTE, None), KeyValues)
        }
        plain = DynamicCache(config=model.config).layers
        if set(found) != set(range(len(plain))) or not is_installed(model.config):
            raise InvalidInput(
                f"This {type(model).__name__} does not quantize the keys and values of all its layers: {len(found)} of "
                f"{len(plain)} have bits for them, and its attention implementation is "
                f"{model.config._attn_implementation!r}. Use transformers' DynamicCache, or a model whose artifact "
                "quantizes them."
            )
        super().__init__(
            layers=[
                KeyValueLayer(found[index], recent, getattr(layer, "sliding_window", None))
                for index, layer in enumerate(plain)
            ]
        )

    def bytes(self) -> int:
        """Return the bytes held in memory, with the room that buffers have to grow."""
        held: int = sum(layer.bytes() for layer in self.layers)
        return held

    def bytes_at(self, dtype: torch.dtype) -> int:
        """Return the bytes that the tokens now held would take as plain tensors of `dtype`."""
        numbers: int = sum(layer.numbers() for layer in self.layers)
        return numbers * dtype.itemsize


class KeyValueLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's tokens, oldest first: segments of one bit-width each, then the latest ones, unquantized.

    Keys and values, `(batch, heads, tokens, head size)` each, are stored together, as a first dimension of two. A
    `window` is that of a sliding attention: of the tokens before the next, only `window - 1` are kept. Tensors are
    never changed in place where they were handed out.
    """

    is_compileable = False

    def __init__(self, key_values: KeyValues, recent: int, window: int | None) -> None:
        super().__init__()
        # Weakly, so that a copy of the cache (of a prompt that is used again) still belongs to the same model.
        self._key_values = weakref.ref(key_values)
        self.recent = recent
        self.sliding_window = window
        self.is_sliding = window is not None
        # Only if all tokens are stored alike does a rollback leave no trace.
        self.is_croppable = recent == 0
        self.record_past = False
        self._clear()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Learn shape, dtype and device from the first tokens, `(batch, heads, tokens, head size)`."""
        batch, heads, _, size = key_states.shape
        self._latest = key_states.new_empty(2, batch, heads, 0, size)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the next tokens; returns the keys and values of all that the attention may see, without gradients."""
        key_values = self._key_values()
        assert key_values is not None, "the model that this cache was made for no longer exists"
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_values.bits is not None and not self._rotated:
            self._rotate_stored(key_values)
        states = torch.stack((key_states, value_states)).detach()
        self._store(_rotate(states, key_values) if self._rotated else states, key_values.bits)
        held = self._states()
        if self.sliding_window is not None:
            # While the past is recorded, more is held than the mask has columns for.
            held = held[..., -(self.sliding_window - 1 + states.shape[-2]) :, :]
        if not self.record_past:
            self._forget_what_no_window_reaches()
        keys, values = held.unbind(0)
        if self._rotated:
            keys = key_values.restore(keys)
            key_values.hand_out(keys)
        return keys, values

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Return the number of tokens that the next `update` will return, and the position of the first of them."""
        # transformers 5.3 gives the positions of the queries.
        length = len(query_length) if isinstance(query_length, Tensor) else query_length
        past = self._reach(self._seen)
        return past + length, self._seen - past

    def get_seq_length(self) -> int:
        """Return the number of tokens seen, with those that were forgotten."""
        return self._seen

    def get_max_length(self) -> int:
        """Return the window; -1 for no limit."""
        return -1 if self.sliding_window is None else self.sliding_window

    get_max_cache_shape = get_max_length  # as transformers 5.3 calls it

    def activate_past_recording(self) -> None:
        """Forget tokens outside the window only in `crop`, so that it can go back."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Remove `-tokens_to_remove` of the latest tokens; a positive number is how many may be left.

        Raises `InvalidInput` if tokens that were forgotten would be in the window again.
        """
        left = tokens_to_remove if tokens_to_remove > 0 else max(self._seen + tokens_to_remove, 0)
        removed = max(self._seen - left, 0)
        if self._held() - removed < self._reach(self._seen - removed):
            raise InvalidInput(
                f"The last {removed} tokens cannot be removed: the window of {self.sliding_window} tokens would move "
                "back over tokens that were forgotten. Call activate_past_recording before there are so many."
            )
        self._seen -= removed
        kept = max(self._latest.shape[-2] - removed, 0)
        removed -= self._latest.shape[-2] - kept
        self._latest = self._latest[..., :kept, :]
        for segment in reversed(self._segments):
            removed -= segment.drop_last(removed)
        self._forget_what_no_window_reaches()

    def reset(self) -> None:
        """Forget everything."""
        self._clear()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequence `i` becomes what sequence `beam_idx[i]` was."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence `repeats` times."""
        self.batch_select_indices(torch.arange(self._latest.shape[1]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences at `indices` of the batch, `(n,)` int64, in this order."""
        if self.is_initialized:
            for segment in self._segments:
                segment.select(indices)
            self._latest = self._latest[:, indices.to(self._latest.device)]

    def bytes(self) -> int:
        """Return the bytes held in memory."""
        return self._latest.nbytes + sum(segment.bytes() for segment in self._segments)

    def numbers(self) -> int:
        """Return the count of stored numbers: two vectors per token and head."""
        _, batch, heads, _, size = self._latest.shape
        return 2 * batch * heads * self._held() * size

    def _clear(self) -> None:
        self.is_initialized = False
        self._segments: list[Segment] = []
        self._latest = torch.empty(2, 0, 0, 0, 0)
        self._seen = 0
        self._rotated = False

    def _rotate_stored(self, key_values: KeyValues) -> None:
        """Turn to rotated tensors, once: those of the tokens so far, which are all plain, are rotated."""
        self._segments = [Segment(_rotate(segment.states(), key_values), None) for segment in self._segments]
        self._latest = _rotate(self._latest, key_values)
        self._rotated = True

    def _store(self, states: Tensor, bits: int | None) -> None:
        """Keep the last `recent` tokens as they are, and append those before to the segments at `bits`."""
        self._seen += states.shape[-2]
        states = torch.cat((self._latest, states), dim=-2)
        settled = max(states.shape[-2] - self.recent, 0)
        # A copy, which does not hold the memory of the rest.
        self._latest = states[..., settled:, :].clone()
        if settled == 0:
            return
        if self._segments and self._segments[-1].bits == bits:
            self._segments[-1].append(states[..., :settled, :])
        else:
            self._segments.append(Segment(states[..., :settled, :], bits))

    def _states(self) -> Tensor:
        """Keys and values of all tokens held, `(2, batch, heads, tokens, head size)`."""
        parts = [segment.states() for segment in self._segments]
        if self._latest.shape[-2]:
            parts.append(self._latest)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)

    def _forget_what_no_window_reaches(self) -> None:
        excess = self._held() - self._reach(self._seen)
        for segment in self._segments:
            excess -= segment.drop_first(excess)
        self._latest = self._latest[..., excess:, :].clone()
        self._segments = [segment for segment in self._segments if len(segment)]

    def _reach(self, seen: int) -> int:
        """Return the number of `seen` tokens that the next one may look back to."""
        return seen if self.sliding_window is None else min(seen, self.sliding_window - 1)

    def _held(self) -> int:
        return sum(len(segment) for segment in self._segments) + self._latest.shape[-2]


def _rotate(states: Tensor, key_values: KeyValues) -> Tensor:
    return torch.stack(key_values.rotate(*states.unbind(0)))
