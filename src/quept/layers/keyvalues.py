"""Quantization of one attention layer's keys and values (QuaRot, arXiv 2404.00456)."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from quept.layers.keep_dtype import KeepDtype
from quept.layers.setting import Adjustable
from quept.numerics.hadamard import Rotation
from quept.numerics.keyvalues import fake_quantize

HANDED_OUT = "quept_handed_out"  # the attribute under which keys name the layer that they are for


class KeyValues(KeepDtype, Adjustable[int | None]):
    """The bit-width of an attention layer's keys and values, their rotation, and where keys are centred.

    What all keys of a head have in common makes their ranges wide and says nothing about any of them; it is taken away
    before they are quantized and added again afterwards. `center`, float32 `(heads, 1, head size)`, is measured in
    `measuring_center`; it is zero before, and `heads` and `size` may be 1 where it stays so.
    Queries and keys are rotated alike, which leaves their products as they are. Values are rotated if `rotates_values`,
    and then the attention's output is rotated back; else the weights before and behind already do both. `path` is where
    the attention is in the model. `bits` is 2 to 8, or None for full precision.

    All tensors are `(batch, heads, tokens, head size)`, after rotary embeddings, and keep their dtype.
    """

    center: Tensor

    def __init__(self, path: str, rotates_values: bool, heads: int = 1, size: int = 1) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(heads, 1, size, dtype=torch.float32))
        self._sum: Tensor | None = None
        self._tokens = 0
        self.path = path
        self.rotates_values = rotates_values
        self.set_default(None)

    @property
    def bits(self) -> int | None:
        """Bit-width in force; None is full precision. Setting it sets the default for all threads."""
        return self.setting

    @bits.setter
    def bits(self, bits: int | None) -> None:
        self.set_default(bits)

    def rotate(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, centred, and values, if this layer rotates them: as they are quantized.

        In float64: a token's result must not depend on how many others are in the same product, or a cache, which sees
        one at a time, would now and then choose another code than a pass over the whole text.
        """
        keys = _times(keys.double() - self.center, _rotation(keys.shape[-1], torch.float64, keys.device), keys.dtype)
        if self.rotates_values:
            values = _times(values, _rotation(values.shape[-1], torch.float64, values.device), values.dtype)
        return keys, values

    def quantize(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values rotated and fake-quantized at `bits`, with straight-through gradients."""
        assert self.bits is not None
        keys, values = self.rotate(keys, values)
        return self.restore(fake_quantize(keys, self.bits)), fake_quantize(values, self.bits)

    def restore(self, keys: Tensor) -> Tensor:
        """Rotated keys with what they have in common, as the attention wants them."""
        if self.center.shape[-1] == 1:
            return keys
        return keys + _times(self.center, _rotation(keys.shape[-1], torch.float64, keys.device), keys.dtype)

    def rotate_queries(self, queries: Tensor) -> Tensor:
        """Queries, for rotated keys."""
        return _times(queries, _rotation(queries.shape[-1], torch.float32, queries.device), queries.dtype)

    def rotate_back(self, output: Tensor) -> Tensor:
        """Return the attention's output, `(..., head size)`, as if its values had not been rotated."""
        if not self.rotates_values:
            return output
        return _times(output, _rotation(output.shape[-1], torch.float32, output.device).T, output.dtype)

    @contextmanager
    def measuring_center(self) -> Iterator[None]:
        """Within: the keys of every attention count for `center`, which is their mean afterwards."""
        self._sum, self._tokens = torch.zeros_like(self.center, dtype=torch.float64), 0
        try:
            yield
            if self._tokens:
                self.center.copy_(self._sum / self._tokens)
        finally:
            self._sum = None

    def observe(self, keys: Tensor) -> None:
        """Let keys count, if the center is being measured."""
        if self._sum is not None:
            self._sum += keys.detach().double().sum((0, 2)).unsqueeze(1)
            self._tokens += keys.shape[0] * keys.shape[2]

    def learned(self) -> dict[str, Tensor]:
        """Return the tensors that calibration measures, by name."""
        return {"center": self.center}

    def hand_out(self, keys: Tensor) -> None:
        """Note that the next attention over `keys` finds them, and their values, as they are to be used."""
        # On the tensor, which belongs to one pass: several threads may generate at the same time.
        setattr(keys, HANDED_OUT, weakref.ref(self))

    def were_handed_out(self, keys: Tensor) -> bool:
        """Return whether a cache handed out `keys`; true only once for each time that it did."""
        noted = getattr(keys, HANDED_OUT, None)
        if noted is None:
            return False
        delattr(keys, HANDED_OUT)
        return noted() is self

    def extra_repr(self) -> str:
        """Return what distinguishes layers in a printed model."""
        return f"bits={self.bits}, rotates_values={self.rotates_values}"


def _times(vectors: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    # Never in bfloat16, in which the matrix would not be orthogonal.
    return (vectors.to(matrix.dtype) @ matrix).to(dtype)


_ROTATIONS: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


def _rotation(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix by which row vectors are rotated, `(size, size)`; its transpose rotates them back.

    Heads are so narrow that one product with a dense matrix is faster than several with its factors.
    """
    # Not by functools.cache, past which torch.compile would look into the construction, and warn.
    matrix = _ROTATIONS.get((size, dtype, device))
    return _make_rotation(size, dtype, device) if matrix is None else matrix


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _make_rotation(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # where it could not be used for training afterwards
        matrix = Rotation.of(size)(torch.eye(size, dtype=torch.float64)).to(device, dtype)
    _ROTATIONS[size, dtype, device] = matrix
    return matrix
