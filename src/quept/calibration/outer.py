"""The layers in front of the blocks and behind them, which have one width and nothing to train."""

from collections.abc import Callable

from torch import Tensor, nn

from quept.assembly import assemble_outer
from quept.calibration.job import Job
from quept.layers import ElasticLinear, stored_tensors
from quept.layers.quantizers import TensorQuantizer
from quept.layers.weight import UNCLIPPED


class OuterLayers:
    """Those of one model, placed as soon as what flows into them is known."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.placed: dict[str, ElasticLinear] = {}

    @property
    def exist(self) -> bool:
        """Whether there are any."""
        job = self.job
        return job.recipe.outer_bits is not None and bool(job.architecture.outer_layers(job.model))

    def quantize(self, part: nn.Module, run: Callable[[], object]) -> bool:
        """Make those in a copy of the model, or of a part of it, elastic, and find their ranges while `run` runs it.

        Those that were placed before are left alone. Returns whether there were others.
        """
        layers = assemble_outer(part, self.job.architecture, self.job.recipe)
        new = {path: layer for path, layer in layers.items() if path not in self.placed}
        quantizers = [layer.input.quantizer for layer in new.values() if layer.input is not None]
        for quantizer in quantizers:
            quantizer.start_observing()
        if new:
            run()
        for layer in new.values():
            for bits in layer.spec.store.without_master(layer.spec.groups.bits):
                layer.reset_clipping(bits, UNCLIPPED)
            layer.round_master()
            layer.freeze()
        for quantizer in quantizers:
            seen = isinstance(quantizer, TensorQuantizer)
            quantizer.init_range(self.job.recipe.activations.range_init if seen else UNCLIPPED)
        self.placed |= new
        return bool(new)

    def run_rounded(self) -> None:
        """From now on those that were placed run at their width."""
        for layer in self.placed.values():
            (layer.bits,) = layer.spec.groups.bits
            layer.activation_bits = self.job.recipe.outer_activations.bits_for(layer.bits)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors outside the blocks, by path in the model, with these layers' own where there are such."""
        inside = f"{self.job.architecture.blocks}."
        rest = {name: tensor for name, tensor in stored_tensors(self.job.model).items() if not name.startswith(inside)}
        for path, layer in self.placed.items():
            weight = self.job.model.get_submodule(path).weight.detach()
            if rest.pop(f"{path}.weight", None) is None:  # an embedding shares it
                weight = weight.clone()
            for name, tensor in stored_tensors(layer).items():
                kept = rest.get(f"{path}.{name}", tensor)
                rest[f"{path}.{name}"] = weight.flatten(1) if name == "weight" else kept
        return {name: tensor.detach().to("cpu") for name, tensor in rest.items()}
