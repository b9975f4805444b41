"""One block under calibration: on the compute device, elastic, run at any width."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from quept.assembly import assemble
from quept.calibration.capture import BlockCall
from quept.config import Recipe
from quept.layers import (
    AttentionOperands,
    ElasticInput,
    ElasticLinear,
    Quantizer,
    WeightCache,
    nearest,
    quantizers_of,
    stored_tensors,
)
from quept.layers.keyvalues import KeyValues
from quept.layers.tensors import copy_sharing
from quept.models import BlockContext
from quept.models.attention import ATTRIBUTE, PRODUCTS
from quept.models.checkpoint import cast_parameters
from quept.transforms import FoldedInput, Transform, transforms_of


class CalibrationBlock:
    """A working copy of a block, elastic, with the call the model makes to it; the model itself is never touched."""

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
        self.path, self.context, self.recipe = context.path, context, recipe
        self.call, self.device = call.to(device), device
        self.transforms = transforms_of(recipe)
        self.linears = assemble(self.module, context, recipe, self.transforms)
        self.moved: dict[str, FoldedInput] = {}

    @property
    def inputs(self) -> list[ElasticInput]:
        """What the linears' inputs go through, each once."""
        return list(dict.fromkeys(linear.input for linear in self.linears.values() if linear.input is not None))

    @property
    def key_values(self) -> list[KeyValues]:
        """What quantizes the block's keys and values, where these are kept."""
        return [found for found in self._attached(ATTRIBUTE) if isinstance(found, KeyValues)]

    @property
    def products(self) -> list[AttentionOperands]:
        """What rounds the operands of attention's products, where they are rounded."""
        return [found for found in self._attached(PRODUCTS) if isinstance(found, AttentionOperands)]

    @property
    def quantizers(self) -> list[Quantizer]:
        """What rounds activations in the block, each once."""
        return quantizers_of(self.linears.values(), self.products)

    def replica(self) -> "CalibrationBlock":
        """Return the same block once more, for a thread of its own.

        It shares every tensor, and has its own of all that a forward pass sets: widths, overrides, what is kept.
        """
        learning = [tensor for linear in self.linears.values() for tensor in linear.learning()]
        twin = copy.copy(self)
        twin.module = copy_sharing(self.module, learning)
        twin.linears = {path: _linear(twin.module, path) for path in self.linears}
        return twin

    def fold(self, transform: Transform, inputs: Mapping[str, Tensor]) -> None:
        """Fold a transform into the weights; see there for `inputs`."""
        for path, moved in transform.fold(self.module, self.context, inputs).items():
            scale = self.linears[path].input_scale
            assert scale is not None
            scale.copy_(moved.scale)
            self.moved[path] = moved

    def multiplied(self, path: str, rows: Tensor) -> Tensor:
        """Rows `(tokens, in)` from in front of a linear before anything was folded, as its weight now meets them."""
        given = self.linears[path].input
        rows = rows if given is None else given.transformed(rows)
        if path not in self.moved:
            return rows
        scale, shift = self.moved[path]
        return (rows if shift is None else rows - shift) / scale

    def round_to_stored(self) -> None:
        """Round all weights to what they will be stored in, so that what ships is what is trained."""
        stored = {f"{path}.weight" for path, linear in self.linears.items() if linear.master_bits is not None}
        for linear in self.linears.values():
            linear.round_master()
        for name, parameter in self.module.named_parameters():
            if name in self._stored and name not in stored:
                parameter.data = parameter.data.to(self._stored[name]).to(parameter.dtype)

    def freeze(self) -> None:
        """End the training: what was learned takes the form that it is stored in."""
        for linear in self.linears.values():
            linear.freeze()
        self.module.requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """The block's tensors by path in the model, each once, on the CPU, in the checkpoint's dtypes."""
        return {
            f"{self.path}.{name}": tensor.to("cpu", self._stored.get(name, tensor.dtype)).contiguous()
            for name, tensor in stored_tensors(self.module).items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave; raises RuntimeError where names or shapes differ."""
        for linear in self.linears.values():
            linear.empty()
        prefix = f"{self.path}."
        given = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        if differing := sorted(given.keys() ^ stored_tensors(self.module).keys()):
            raise RuntimeError(f"{differing[0]} is missing, or has no place")
        self.module.load_state_dict(given, strict=False)

    def run(self, hidden: Tensor, bits: int | None = None, others: Mapping[str, int] | None = None) -> Tensor:
        """The block's output for `(batch, tokens, hidden)` at a width, or (None) at full precision.

        `others` are linears whose weights have another width, by path. Activations run at the width that the recipe
        puts beside `bits`.
        """
        for path, linear in self.linears.items():
            linear.bits = bits if others is None else others.get(path, bits)
            linear.activation_bits = self.recipe.activations.bits_for(bits)
        for products in self.products:
            products.bits = self.recipe.activations.bits_for(bits)
        return self.call(self.module, hidden)

    @contextmanager
    def derived_once(self) -> Iterator[None]:
        """Within: no gradients, and each width's weights are derived once instead of at every run."""
        with torch.no_grad(), self._residency(WeightCache()):
            yield

    @contextmanager
    def multiplying(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Within: the linears multiply in `dtype`; what they take and give stays as it is."""
        for linear in self.linears.values():
            linear.product_dtype = dtype
        try:
            yield
        finally:
            for linear in self.linears.values():
                linear.product_dtype = None

    @contextmanager
    def rounded_to_nearest(self, bits: int) -> Iterator[None]:
        """Within: the baseline's weights and activations, whatever width `run` is given."""
        with nearest(self.linears.values(), bits, self.recipe.activations.bits_for(bits), self.products):
            yield

    @contextmanager
    def observed(self, paths: Iterable[str], tokens: int) -> Iterator[dict[str, Tensor]]:
        """Within: collect up to `tokens` input rows of each linear per run, evenly spaced; yields the collection.

        What else is measured of activations is measured as well: the mean of keys, and operands of attention.
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
            for products in self.products:
                stack.enter_context(products.observing())
            yield seen

    def _attached(self, name: str) -> list[nn.Module | None]:
        return [getattr(self.module.get_submodule(path), name, None) for path in self.context.attentions]

    @contextmanager
    def _residency(self, weight_cache: WeightCache) -> Iterator[None]:
        for linear in self.linears.values():
            linear.weight_cache = weight_cache
        try:
            yield
        finally:
            for linear in self.linears.values():
                linear.weight_cache = None


def _linear(module: nn.Module, path: str) -> ElasticLinear:
    linear = module.get_submodule(path)
    assert isinstance(linear, ElasticLinear)
    return linear
