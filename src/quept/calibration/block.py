"""One block under calibration: on the compute device, elastic, run at any width."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quept.architectures import Architecture
from quept.architectures.checkpoint import cast_parameters
from quept.calibration.capture import BlockCall
from quept.nn import DerivedWeights, ElasticLinear, replace_linears
from quept.spec import WeightSpec


class CalibrationBlock:
    """A working copy of a block, with the call the model makes to it; the model itself is never touched.

    It starts at full precision; `make_elastic` replaces the linears, after which `run` takes a width.
    """

    def __init__(
        self,
        block: nn.Module,
        path: str,
        architecture: Architecture,
        call: BlockCall,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._stored = {name: tensor.dtype for name, tensor in block.state_dict().items()}
        self.module = cast_parameters(copy.deepcopy(block).to(device), dtype).eval()
        for name in architecture.widened:
            parameter = self.module.get_parameter(name)
            self._stored[name] = torch.promote_types(self._stored[name], torch.float32)
            parameter.data = parameter.data.to(torch.float32)
        self.module.requires_grad_(False)
        self.path, self.architecture, self.call, self.device = path, architecture, call.to(device), device
        self.linears: dict[str, ElasticLinear] = {}

    def make_elastic(self, spec: WeightSpec, column_scales: Mapping[str, Tensor]) -> None:
        """Replace the linears by elastic ones; `column_scales` is what smoothing multiplied their columns by."""
        self.linears = replace_linears(self.module, self.path, self.architecture.linears, spec)
        for path, scale in column_scales.items():
            self.linears[path].input_scale.copy_(scale)

    def round_to_stored(self) -> None:
        """Round all weights to the dtype they will be stored in, so that what ships is what is trained."""
        for name, parameter in self.module.named_parameters():
            parameter.data = parameter.data.to(self._stored[name]).to(parameter.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """The block's tensors by path in the model, on the CPU, in the checkpoint's dtypes."""
        state = self.module.state_dict()
        return {
            f"{self.path}.{name}": tensor.to("cpu", self._stored.get(name, tensor.dtype)).contiguous()
            for name, tensor in state.items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave; raises RuntimeError where names or shapes differ."""
        prefix = f"{self.path}."
        self.module.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})

    def run(self, hidden: Tensor, bits: int | None = None) -> Tensor:
        """The block's output for `(batch, tokens, hidden)` at a width, or (None) at full precision."""
        for linear in self.linears.values():
            linear.bits = bits
        return self.call(self.module, hidden)

    @contextmanager
    def derived_once(self) -> Iterator[None]:
        """Within: no gradients, and each width's weights are derived once instead of at every run."""
        with torch.no_grad(), self._residency(DerivedWeights()):
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
        """Within: the baseline's weights, whatever width `run` is given."""
        try:
            for linear in self.linears.values():
                linear.override = linear.nearest(bits)
            yield
        finally:
            for linear in self.linears.values():
                linear.override = None

    @contextmanager
    def observed(self, paths: Iterable[str], tokens: int) -> Iterator[dict[str, Tensor]]:
        """Within: collect up to `tokens` input rows of each linear per run, evenly spaced; yields the collection."""
        seen: dict[str, Tensor] = {}

        def observe(path: str) -> object:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                rows = args[0].detach().flatten(0, -2)
                taken = rows[:: max(1, rows.shape[0] // tokens)][:tokens]
                seen[path] = torch.cat([seen[path], taken]) if path in seen else taken.clone()

            return self.module.get_submodule(path).register_forward_pre_hook(hook)

        handles = [observe(path) for path in paths]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()  # type: ignore[attr-defined]

    @contextmanager
    def _residency(self, residency: DerivedWeights) -> Iterator[None]:
        for linear in self.linears.values():
            linear.residency = residency
        try:
            yield
        finally:
            for linear in self.linears.values():
                linear.residency = None
