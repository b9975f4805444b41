"""Attention whose two products have rounded operands: queries times keys, and probabilities times values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from quept.config import Activations
from quept.layers.quantizers import LogQuantizer, Quantizer, quantizer
from quept.layers.setting import Adjustable


class OperandSetting(NamedTuple):
    """Bit-width of attention's operands, None being full precision; `unclipped` rounds on whole ranges (baseline)."""

    bits: int | None
    unclipped: bool = False


class AttentionOperands(Adjustable[OperandSetting]):
    """Rounds the operands of one attention layer's products; `path` is where the layer is in the model.

    `bits` is a bit-width of `spec`, or None for full precision.
    """

    def __init__(self, path: str, spec: Activations, device: torch.device) -> None:
        super().__init__()
        self.path, self.spec = path, spec
        self.set_default(OperandSetting(None))
        self.queries, self.keys = quantizer(spec, device), quantizer(spec, device)
        self.probabilities = LogQuantizer(spec, device) if spec.softmax == "log" else quantizer(spec, device)
        self.values = quantizer(spec, device)
        self._observing = False

    @property
    def bits(self) -> int | None:
        """Bit-width in force; None is full precision. Setting it sets the default for all threads."""
        return self.setting.bits

    @bits.setter
    def bits(self, bits: int | None) -> None:
        self.set_default(OperandSetting(bits))

    @property
    def are_rounded(self) -> bool:
        """Whether operands are rounded or observed, so that they must be made at all."""
        return self._observing or self.bits is not None or self.queries.override is not None

    def quantizers(self) -> Iterator[Quantizer]:
        """Return all four."""
        yield from (self.queries, self.keys, self.probabilities, self.values)

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Within: operands count for where ranges start."""
        for each in self.quantizers():
            each.start_observing()
        self._observing = True
        try:
            yield
        finally:
            self._observing = False

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """Attention over `(batch, heads, tokens, head size)`, as `(batch, tokens, heads, head size)`.

        `mask` is added to the scores, or says (bool) which of them count. Probabilities are made in float32.
        """
        setting = self.setting
        queries, keys = self._rounded(self.queries, query, setting), self._rounded(self.keys, key, setting)
        scores = queries @ keys.transpose(-1, -2) * scaling
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        probabilities = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        output = self._rounded(self.probabilities, probabilities, setting) @ self._rounded(self.values, value, setting)
        return output.transpose(1, 2).contiguous()

    def _rounded(self, of: Quantizer, operand: Tensor, setting: OperandSetting) -> Tensor:
        if self._observing:
            of.observe(operand)
        rounded: Tensor = of(operand, *setting)
        return rounded

    def extra_repr(self) -> str:
        """Return what distinguishes layers in a printed model."""
        return f"bits={self.bits}"
