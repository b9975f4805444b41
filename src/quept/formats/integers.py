"""Operands of integer products: activations with a scale per token, and weights with a scale per output channel.

`y = x_scale * w_scale * sum_k qx[k] * (qw[k] - z) + bias`, with the codes `qx` of the activation symmetric around zero,
and the codes `qw` of the weight on an affine grid, one scale and zero point `z` per output channel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_IN = (2**31 - 1) // (255 * 128)  # inputs whose products, one factor unsigned, sum within int32
ZERO = 128  # of the unsigned codes of activations, and of weights that span more than int8


@dataclass(frozen=True)
class Tokens:
    """A quantized activation, shared by every linear that multiplies it.

    codes: uint8 `(tokens, in)`, the integer code plus 128.
    scale: float32 `(tokens, 1)`.
    leading: the dimensions in front of the channels.
    known_sums: `sums`, where they have been computed.
    """

    codes: Tensor
    scale: Tensor
    leading: torch.Size
    known_sums: Tensor | None = None

    @property
    def sums(self) -> Tensor:
        """Each token's sum of integer codes, float32 `(tokens, 1)`; computed when first needed."""
        if self.known_sums is None:
            sums = self.codes.sum(-1, keepdim=True, dtype=torch.int32) - ZERO * self.codes.shape[1]
            object.__setattr__(self, "known_sums", sums.float())
        assert self.known_sums is not None
        return self.known_sums


@dataclass(frozen=True)
class IntegerWeight:
    """The weight `(out, in)` of a linear layer, packed for an integer product.

    packed: `qw - z` as int8 where that fits every weight, else `qw - 128`; `(out, in)`, or as `layout` has it.
    scale: float32 `(out,)`.
    shift: with `qw - 128`, what each unit of a token's sum of codes adds: `(128 - z) * scale`, float32 `(1, out)`.
    layout: the backend whose product reads `packed`; "reference" for plain int8.
    """

    packed: Tensor
    scale: Tensor
    shift: Tensor | None
    shape: tuple[int, int]
    layout: str = "reference"

    @classmethod
    def of(cls, codes: Tensor, scale: Tensor, zero_point: Tensor, device: torch.device) -> "IntegerWeight":
        """From uint8 codes `(out, in)`, scales `(out,)` and integral zero points `(out,)` from 0 to 255; plain int8.

        `ValueError` if sums could leave int32.
        """
        if codes.shape[1] > LARGEST_IN:
            raise ValueError(f"int32 holds sums over at most {LARGEST_IN} inputs, not {codes.shape[1]}")
        scale = scale.to(device, torch.float32).contiguous()
        zero_point = zero_point.to(device, torch.int16)
        signed, shift = codes.to(device, torch.int16) - zero_point.unsqueeze(1), None
        if signed.numel() and (signed.amin() < -128 or signed.amax() > 127):
            signed = codes.to(device, torch.int16) - ZERO
            shift = ((ZERO - zero_point) * scale).unsqueeze(0)
        return cls(signed.to(torch.int8), scale, shift, (codes.shape[0], codes.shape[1]))

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and shifts; the padding of a layout, a few percent at most, is not counted."""
        vectors = self.scale.nbytes + (0 if self.shift is None else self.shift.nbytes)
        return self.shape[0] * self.shape[1] + vectors
