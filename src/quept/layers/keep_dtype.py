"""Modules whose learned tensors keep their dtype when the model is cast."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class KeepDtype(nn.Module):
    """A module whose learned tensors follow the model to a device, but not to a dtype.

    Calibration learns in float32 and stores codes in integers and 16 bits, each chosen on purpose. So `model.half()`,
    `model.to(torch.bfloat16)` and the like leave the tensors of `learned` as they are, bit for bit.
    """

    def learned(self) -> dict[str, Tensor]:
        """Return the parameters and buffers that keep their dtype, by name relative to this module."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Apply `fn`, as `nn.Module` does for `to`, `half`, `cuda` and the like, and undo a change of dtype."""
        before = {name: tensor.detach() for name, tensor in self.learned().items()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in self.learned().items():
            if tensor.dtype != before[name].dtype:
                tensor.data = before[name].to(tensor.device)
        return self
