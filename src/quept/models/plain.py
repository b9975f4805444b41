"""The plain transformers checkpoint of an elastic model at the precision in force.

transformers asks a model's `hf_quantizer` for the tensors that `save_pretrained` and `push_to_hub` write. Those of an
elastic model mean nothing to transformers, which would open them as a model of random weights; here they are the
dequantized weights instead. What a plain model cannot compute is refused: rounding of activations, of keys and values,
and rotations at run time.
"""

import copy
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers.quantizers import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from quept.errors import InvalidInput
from quept.layers import ElasticLinear
from quept.precision import Parts

INSTEAD = "Use quept.save, which writes the artifact with all bit-widths"


class PlainCheckpoint(HfQuantizer):  # type: ignore[misc]
    """Tells transformers what to write of an elastic model; `rotated` says that it rotates activations at run time."""

    is_trainable = True
    is_compileable = True

    def __init__(self, rotated: bool) -> None:
        super().__init__(QuantizationConfigMixin(quant_method="quept"))
        self.rotated = rotated

    def is_serializable(self) -> bool:
        """Return True: `get_state_dict_and_metadata` refuses what cannot be written."""
        return True

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """Return the tensors to write; None is what transformers chooses, where it writes adapters alone.

        Raises `InvalidInput` where no plain model computes what this one does.
        """
        if getattr(model, "_hf_peft_config_loaded", False):
            return None, {}
        if self.rotated:
            raise InvalidInput(f"The model rotates activations at run time, which no plain checkpoint can. {INSTEAD}.")
        return plain_tensors(model), {}

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        raise InvalidInput(
            "A loaded model is not dequantized in place; model.save_pretrained writes it as a plain checkpoint at the "
            "precision in force, and from_pretrained opens that."
        )


@torch.no_grad()
def plain_tensors(model: Any) -> dict[str, Tensor]:
    """Return the tensors of the plain model that computes what an elastic one does at the precision in force.

    Raises `InvalidInput` where activations, keys or values are rounded, and where a tied head is quantized.
    """
    _check_expressible(model)
    with init_empty_weights(include_buffers=False):
        plain = type(model)(copy.deepcopy(model.config))
    held, tensors = model.state_dict(), {}
    for name in plain.state_dict():
        path, _, leaf = name.rpartition(".")
        layer = model.get_submodule(path)
        if isinstance(layer, ElasticLinear) and leaf == "weight":
            tensors[name] = _like(plain.get_submodule(path), _weight(layer))
        elif name in held:
            tensors[name] = held[name]
        else:
            raise InvalidInput(f"{name} is not in the model, so no plain checkpoint of it can be written. {INSTEAD}.")
    _check_tied(model, tensors)
    return tensors


def _check_expressible(model: Any) -> None:
    """Raise `InvalidInput` where the model computes something that a plain one does not."""
    parts = Parts.of(model)
    layers = parts.linears.values()
    remedy = f"{INSTEAD}, or write the weights alone: quept.set_precision(model, 'w4a16kv16')"
    if any(layer.setting.activation_bits is not None for layer in layers) or any(
        each.setting.bits is not None for each in parts.operands.values()
    ):
        raise InvalidInput(f"The model rounds activations, which no plain checkpoint can. {remedy}.")
    if any(each.setting is not None for each in parts.key_values.values()):
        raise InvalidInput(f"The model quantizes keys and values, which no plain checkpoint can. {remedy}.")


def _weight(layer: ElasticLinear) -> Tensor:
    """Return the weight in force, `(out, in)`; at full precision the master."""
    bits = layer.coded(layer.setting.bits)
    return layer.master() if bits is None else layer.dense(bits)


def _like(plain: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight, `(out, in)`, in the shape that a layer of transformers keeps it in."""
    shape = plain.weight.shape
    assert isinstance(shape, torch.Size)
    if isinstance(plain, nn.Linear | nn.Conv2d):
        return weight.view(shape)
    return weight.t().contiguous()  # transformers' Conv1D


def _check_tied(model: Any, tensors: dict[str, Tensor]) -> None:
    """Raise `InvalidInput` where the configuration ties a head to the embeddings that has a weight of its own."""
    head = model.get_output_embeddings()
    if not isinstance(head, ElasticLinear) or not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return
    if not torch.equal(tensors[f"{head.path}.weight"], model.get_input_embeddings().weight):
        raise InvalidInput(f"The head is quantized, and tied to embeddings that are not. {INSTEAD}.")
