"""How one attention layer's keys and values are quantized (QuaRot, arXiv 2404.00456)."""

import weakref

import torch
from torch import Tensor, nn

from quept.numerics.hadamard import Rotation
from quept.numerics.keyvalues import fake_quantize


class KeyValues(nn.Module):
    """The width of an attention layer's keys and values, and their rotation; without parameters or buffers.

    Queries and keys are rotated alike, which leaves their products as they are. Values are rotated if `rotates_values`,
    and then the attention's output is rotated back; else the weights before and behind already do both. `path` is where
    the attention is in the model. `bits` is 2 to 8, or None for full precision.

    All tensors are `(batch, heads, tokens, head size)`, after rotary embeddings, and keep their dtype.
    """

    def __init__(self, path: str, rotates_values: bool) -> None:
        super().__init__()
        self.path = path
        self.rotates_values = rotates_values
        self.bits: int | None = None
        self._handed_out: weakref.ref[Tensor] | None = None

    def rotate(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, and values if this layer rotates them, as they are quantized.

        In float64: a token's result must not depend on how many others are in the same product, or a cache, which sees
        one at a time, would now and then choose another code than a pass over the whole text.
        """
        keys = _times(keys, _rotation(keys.shape[-1], torch.float64, keys.device))
        if self.rotates_values:
            values = _times(values, _rotation(values.shape[-1], torch.float64, values.device))
        return keys, values

    def quantize(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values rotated and fake-quantized at `bits`, with straight-through gradients."""
        assert self.bits is not None
        keys, values = self.rotate(keys, values)
        return fake_quantize(keys, self.bits), fake_quantize(values, self.bits)

    def rotate_queries(self, queries: Tensor) -> Tensor:
        """Queries, for rotated keys."""
        return _times(queries, _rotation(queries.shape[-1], torch.float32, queries.device))

    def rotate_back(self, output: Tensor) -> Tensor:
        """The attention's output, `(..., head size)`, as if its values had not been rotated."""
        if not self.rotates_values:
            return output
        return _times(output, _rotation(output.shape[-1], torch.float32, output.device).T)

    def hand_out(self, keys: Tensor) -> None:
        """Note that the next attention over `keys` finds them, and their values, as they are to be used."""
        self._handed_out = weakref.ref(keys)

    def were_handed_out(self, keys: Tensor) -> bool:
        """Whether `keys` are the tensor that a cache handed out last; true only once."""
        noted, self._handed_out = self._handed_out, None
        return noted is not None and noted() is keys

    def extra_repr(self) -> str:
        """What distinguishes layers in a printed model."""
        return f"bits={self.bits}, rotates_values={self.rotates_values}"


def _times(vectors: Tensor, matrix: Tensor) -> Tensor:
    # Never in bfloat16, in which the matrix would not be orthogonal.
    return (vectors.to(matrix.dtype) @ matrix).to(vectors.dtype)


_ROTATIONS: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


def _rotation(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix by which row vectors are rotated, `(size, size)`; its transpose rotates them back.

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
