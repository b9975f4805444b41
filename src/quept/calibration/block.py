"""One block under calibration: on the compute device, trainable first, elastic once it is frozen."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from quept.assembly import assemble
from quept.attention import ATTRIBUTE, PRODUCTS
from quept.calibration.capture import BlockCall
from quept.calibration.trainable import TrainableLinear
from quept.config import Recipe
from quept.layers import (
    AttentionOperands,
    ElasticInput,
    ElasticLinear,
    Execution,
    Quantizer,
    WeightCache,
    nearest,
    quantizers_of,
    stored_tensors,
)
from quept.layers.keyvalues import KeyValues
from quept.layers.replace import put
from quept.layers.tensors import copy_sharing
from quept.models import BlockContext
from quept.models.checkpoint import cast_parameters
from quept.storage.decisions import keep
from quept.storage.manifest import BlockError
from quept.transforms import FoldedInput, Transform, transforms_of

Kind = TypeVar("Kind", bound=nn.Module)


class CalibrationBlock:
    """A working copy of a block, with the call the model makes to it; the model itself is never touched.

    `original` is the block as it was given. `trainable` are the copy's linears until `freeze`, `linears` from then on,
    both by path in the block.
    """

    def __init__(
        self,
        block: nn.Module,
        context: BlockContext,
        recipe: Recipe,
        call: BlockCall,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._stored = {name: tensor.dtype for name, tensor in block.state_dict().items()}
        self.module = cast_parameters(copy.deepcopy(block).to(device), dtype).eval()
        for name in context.architecture.float32_parameters:
            parameter = self.module.get_parameter(name)
            self._stored[name] = torch.promote_types(self._stored[name], torch.float32)
            parameter.data = parameter.data.to(torch.float32)
        self.module.requires_grad_(False)
        self.path, self.context, self.recipe, self.original = context.path, context, recipe, block
        self.call, self.device = call.to(device), device
        self.transforms = transforms_of(recipe)
        self.trainable = assemble(self.module, context, recipe, self.transforms, TrainableLinear.like)
        self.linears: dict[str, ElasticLinear] = {}
        self.folded: dict[str, FoldedInput] = {}

    @property
    def inputs(self) -> list[ElasticInput]:
        """The transforms and roundings in front of the linears, each once."""
        return list(dict.fromkeys(linear.input for linear in self._layers() if linear.input is not None))

    @property
    def key_values(self) -> list[KeyValues]:
        """The quantization of the block's keys and values, where these are kept."""
        return [found for found in self._attached(ATTRIBUTE) if isinstance(found, KeyValues)]

    @property
    def operands(self) -> list[AttentionOperands]:
        """The quantization of attentions' operands, where they are rounded."""
        return [found for found in self._attached(PRODUCTS) if isinstance(found, AttentionOperands)]

    @property
    def quantizers(self) -> list[Quantizer]:
        """All quantizers of activations in the block, each once."""
        return quantizers_of(self._layers(), self.operands)

    def replica(self) -> "CalibrationBlock":
        """Return the block once more, for a thread of its own.

        It shares every tensor, and has its own of all that a forward pass sets.
        """
        shared = [tensor for linear in self.trainable.values() for tensor in linear.trainable.state()]
        twin = copy.copy(self)
        twin.module = copy_sharing(self.module, shared)
        twin.trainable = {path: _layer(twin.module, path, TrainableLinear) for path in self.trainable}
        twin.linears = {path: _layer(twin.module, path, ElasticLinear) for path in self.linears}
        return twin

    def fold(self, transform: Transform, inputs: Mapping[str, Tensor]) -> None:
        """Fold a transform into the weights; see there for `inputs`."""
        for path, folded in transform.fold(self.module, self.context, inputs).items():
            if path in self.trainable:
                scale = self.trainable[path].input_scale
                assert scale is not None
                scale.copy_(folded.scale)
                self.folded[path] = folded

    def multiplied(self, path: str, rows: Tensor) -> Tensor:
        """Return rows `(tokens, in)`, seen in front of a linear before transforms, as its weight now meets them."""
        given = self.trainable[path].input
        rows = rows if given is None else given.transformed(rows)
        if path not in self.folded:
            return rows
        scale, shift = self.folded[path]
        return (rows if shift is None else rows - shift) / scale

    def round_to_stored(self, inputs: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Round all weights to what will be stored of them, so that what ships is what is trained.

        `inputs` holds rows from in front of the linears, `(tokens, in)`, by path.
        """
        in_store = {
            f"{path}.weight" for path, each in self.trainable.items() if each.spec.store.master_bits is not None
        }
        for path, linear in self.trainable.items():
            linear.trainable.round_master(self.multiplied(path, inputs[path]) if path in inputs else None)
        for name, parameter in self.module.named_parameters():
            if name in self._stored and name not in in_store:
                parameter.data = parameter.data.to(self._stored[name]).to(parameter.dtype)

    def freeze(self) -> None:
        """End the training: elastic layers take the place of the trainable ones."""
        self._replace({path: linear.freeze() for path, linear in self.trainable.items()})
        self.module.requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """Return the frozen block's tensors by path in the model, each once, on the CPU, in the checkpoint's dtypes."""
        return {
            f"{self.path}.{name}": tensor.to("cpu", self._stored.get(name, tensor.dtype)).contiguous()
            for name, tensor in stored_tensors(self.module).items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Freeze the block with what `tensors` gave, untrained; raises RuntimeError where names or shapes differ."""
        self._replace({path: linear.empty() for path, linear in self.trainable.items()})
        prefix = f"{self.path}."
        given = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        if differing := sorted(given.keys() ^ stored_tensors(self.module).keys()):
            raise RuntimeError(f"{differing[0]} is missing, or has no place")
        self.module.load_state_dict(given, strict=False)

    def run(self, hidden: Tensor, bits: int | None = None, others: Mapping[str, int] | None = None) -> Tensor:
        """Return the block's output for `(batch, tokens, hidden)` at a bit-width, or (None) at full precision.

        `others` are linears whose weights have another bit-width, by path. Activations run at the bits that the recipe
        pairs with `bits`. Before it is frozen, a block runs at full precision alone.
        """
        if bits is not None and self.trainable:
            raise RuntimeError("a block runs at a bit-width once it is frozen")
        activation_bits = self.recipe.activations.bits_for(bits)
        for path, linear in self.linears.items():
            linear.run_at(bits if others is None else others.get(path, bits), activation_bits)
        for each in self.operands:
            each.bits = activation_bits
        return self.call(self.module, hidden)

    @contextmanager
    def derived_once(self) -> Iterator[None]:
        """Within: no gradients, and each bit-width's weights are derived once instead of at every run."""
        cache = WeightCache()
        for linear in self.linears.values():
            linear.weight_cache = cache
        try:
            with torch.no_grad():
                yield
        finally:
            for linear in self.linears.values():
                linear.weight_cache = None

    @contextmanager
    def multiplying(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Within: the linears multiply in `dtype`; their inputs and outputs stay as they are."""
        for linear in self._layers():
            linear.execution = Execution(product_dtype=dtype)
        try:
            yield
        finally:
            for linear in self._layers():
                linear.execution = Execution()

    @contextmanager
    def rounded_to_nearest(self, bits: int) -> Iterator[None]:
        """Within: the baseline's weights and activations, whatever bit-width `run` is given."""
        with nearest(self.linears.values(), bits, self.recipe.activations.bits_for(bits), self.operands):
            yield

    @contextmanager
    def on_whole_ranges(self) -> Iterator[None]:
        """Within: activations are rounded on their whole ranges, at every bit-width."""
        before = {each: each.whole_bits for each in self.quantizers}
        for each in before:
            each.whole_bits = frozenset(self.recipe.activations.bits)
        try:
            yield
        finally:
            for each, bits in before.items():
                each.whole_bits = bits

    def keep(self, decisions: Iterable[BlockError]) -> None:
        """Run what was decided from now on, once the block is frozen."""
        keep(decisions, self.linears.values(), self.quantizers, self.recipe.activations)

    @contextmanager
    def observed(self, paths: Iterable[str], tokens: int) -> Iterator[dict[str, Tensor]]:
        """Within: collect up to `tokens` input rows of each linear per run, evenly spaced; yields the collection.

        The mean of keys and the operands of attention are observed as well.
        """
        seen: dict[str, Tensor] = {}

        def observe(path: str) -> RemovableHandle:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                rows = args[0].detach().flatten(0, -2)
                taken = rows[:: max(1, rows.shape[0] // tokens)][:tokens]
                seen[path] = torch.cat([seen[path], taken]) if path in seen else taken.clone()

            handle: RemovableHandle = self.module.get_submodule(path).register_forward_pre_hook(hook)
            return handle

        with ExitStack() as stack:
            for path in paths:
                stack.callback(observe(path).remove)
            for key_values in self.key_values:
                stack.enter_context(key_values.measuring_center())
            for each in self.operands:
                stack.enter_context(each.observing())
            yield seen

    def _layers(self) -> list[TrainableLinear | ElasticLinear]:
        return [*self.trainable.values(), *self.linears.values()]

    def _replace(self, linears: dict[str, ElasticLinear]) -> None:
        for path, linear in linears.items():
            put(self.module, path, linear)
        self.trainable, self.linears = {}, linears

    def _attached(self, name: str) -> list[nn.Module | None]:
        return [getattr(self.module.get_submodule(path), name, None) for path in self.context.attentions]


def _layer(module: nn.Module, path: str, kind: type[Kind]) -> Kind:
    layer = module.get_submodule(path)
    assert isinstance(layer, kind)
    return layer
