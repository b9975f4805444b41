"""LoRA beside an elastic linear; needs PEFT, and is imported once a model gets an adapter."""

from typing import Any

import torch
from peft.tuners import lora

from quept.errors import InvalidInput

NO_MERGE = (
    "An adapter cannot be merged into weights that exist at several bit-widths: keep it beside them, or merge it into "
    "the original model and calibrate that."
)


class ElasticLora(lora.Linear):  # type: ignore[misc]
    """PEFT's LoRA beside an elastic linear, whose output at the precision in force it adds to."""

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Raise `InvalidInput`."""
        raise InvalidInput(NO_MERGE)

    def unmerge(self) -> None:
        """Do nothing: nothing is ever merged."""

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_features, module.out_features

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter to the layer's device: PEFT asks for that of a weight, which a store does not have."""
        super()._move_adapter_to_device_of_base_layer(adapter_name, device or self.get_base_layer().device)
