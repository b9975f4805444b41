"""PEFT's adapters on elastic models.

PEFT keeps the configurations of a model's adapters in its attribute `peft_config`, and lets a LoRA configuration name
layers for modules that PEFT does not know. An elastic model brings a `peft_config` of its own, which does that for each
configuration: `get_peft_model`, `add_adapter` and `load_adapter` work as with any model, at every precision.
"""

from pathlib import Path
from typing import Any

from quept.errors import InvalidInput
from quept.layers import ElasticLinear

_NEEDS_WEIGHT = ("use_dora", "layer_replication", "loftq_config", "corda_config", "lora_ga_config", "kasa_config")
_STARTS = (True, False, "gaussian", "orthogonal")


class Adapters(dict[str, Any]):
    """The configurations of a model's adapters by name; it prepares each for elastic linears.

    Attributes:
        model: the model's name or path; adapters that were made on others are refused if it is `transformed`.
        transformed: whether transforms moved scales between the model's layers, so that its hidden states differ from
            the original model's.
    """

    model, transformed = "", False

    def __init__(self, model: str, transformed: bool) -> None:
        super().__init__()
        self.model, self.transformed = model, transformed

    def __setitem__(self, name: str, config: Any) -> None:
        """Add an adapter's configuration; raises `InvalidInput` for one that elastic linears cannot take."""
        self._check(config)
        from quept.models.lora import ElasticLora  # PEFT is there, since it made the configuration

        config._register_custom_module({ElasticLinear: ElasticLora})
        super().__setitem__(name, config)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add several."""
        for name, config in dict(*args, **kwargs).items():
            self[name] = config

    def _check(self, config: Any) -> None:
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind != "LORA":
            raise InvalidInput(f"The adapter is of the kind {kind}, but elastic linears take LoRA; give a LoraConfig.")
        if set_ := [name for name in _NEEDS_WEIGHT if getattr(config, name, None)]:
            raise InvalidInput(f"{set_[0]} needs one weight per linear, and elastic ones have several; leave it out.")
        if config.init_lora_weights not in _STARTS:
            raise InvalidInput(
                f"init_lora_weights is {config.init_lora_weights!r}, which starts from one weight per linear, and "
                "elastic ones have several; choose True, False, 'gaussian' or 'orthogonal'."
            )
        made_on = config.base_model_name_or_path
        if self.transformed and made_on and Path(made_on).resolve() != Path(self.model).resolve():
            raise InvalidInput(
                f"The adapter was made on {made_on}, but the recipe of this artifact moves scales or rotations between "
                "layers, so that only adapters made on it fit. Train one on it, or calibrate with a recipe without "
                "transforms, such as best. If the artifact itself has moved, change base_model_name_or_path."
            )
