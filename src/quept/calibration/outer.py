"""The layers in front of the blocks and behind them, which have one bit-width and nothing to train."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from quept.assembly import assemble_outer
from quept.calibration.job import Job
from quept.calibration.methods import Start
from quept.calibration.methods.clipping import UNCLIPPED
from quept.calibration.trainable import TrainableWeight
from quept.layers import ElasticLinear, stored_tensors
from quept.layers.linear import weight_of
from quept.layers.quantizers import TensorQuantizer
from quept.layers.replace import put


class OuterLayers:
    """The outer layers of one model, quantized as soon as their inputs are known."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.quantized: dict[str, ElasticLinear] = {}

    @property
    def exist(self) -> bool:
        """Whether the recipe quantizes any."""
        job = self.job
        return job.recipe.outer_bits is not None and bool(job.architecture.outer_layers(job.model))

    def quantize(self, part: nn.Module, run: Callable[[], object]) -> bool:
        """Make those in a copy of the model, or of a part of it, elastic, and find their ranges while `run` runs it.

        Those that were quantized before are left alone. Returns whether there were others.
        """
        originals: dict[str, nn.Module] = dict(self.job.architecture.outer_layers(part))
        layers = assemble_outer(part, self.job.architecture, self.job.recipe)
        new = {path: layer for path, layer in layers.items() if path not in self.quantized}
        if new:
            with _observing(part, originals, new):
                run()
        for path, layer in new.items():
            bits = layer.spec.groups.bits
            weight = TrainableWeight(weight_of(originals[path]).detach().contiguous(), layer.spec, path)
            weight.init(Start(bits, frozenset(bits), UNCLIPPED))
            weight.round_master()
            weight.freeze(layer)
            if layer.input is not None:
                observed = isinstance(layer.input.quantizer, TensorQuantizer)
                layer.input.quantizer.init_range(self.job.recipe.activations.range_init if observed else UNCLIPPED)
        self.quantized |= new
        return bool(new)

    def run_rounded(self) -> None:
        """Run those that were quantized at their bit-width from now on."""
        for layer in self.quantized.values():
            (bits,) = layer.spec.groups.bits
            layer.run_at(bits, self.job.recipe.outer_activations.bits_for(bits))

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors outside the blocks by path in the model, those of quantized layers as they are stored."""
        inside = f"{self.job.architecture.blocks}."
        rest = {name: tensor for name, tensor in stored_tensors(self.job.model).items() if not name.startswith(inside)}
        for path, layer in self.quantized.items():
            weight = self.job.model.get_submodule(path).weight.detach()
            if rest.pop(f"{path}.weight", None) is None:  # an embedding shares it
                weight = weight.clone()
            for name, tensor in stored_tensors(layer).items():
                kept = rest.get(f"{path}.{name}", tensor)
                rest[f"{path}.{name}"] = weight.flatten(1) if name == "weight" else kept
        return {name: tensor.detach().to("cpu") for name, tensor in rest.items()}


@contextmanager
def _observing(
    part: nn.Module, originals: Mapping[str, nn.Module], layers: Mapping[str, ElasticLinear]
) -> Iterator[None]:
    """Within: the original layers are back in their place, and what flows into them is observed for ranges."""
    with ExitStack() as stack:
        for path, layer in layers.items():
            put(part, path, originals[path])
            stack.callback(put, part, path, layer)
            if layer.input is not None:
                quantizer = layer.input.quantizer
                quantizer.start_observing()
                hook = originals[path].register_forward_pre_hook(lambda _, args, to=quantizer: to.observe(args[0]))
                stack.callback(hook.remove)
        yield
