"""A linear's weight while it is calibrated; what comes out of it, and runs, is a `FrozenWeight`."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quept.calibration.methods import Clipping, Draft, LearnedRounding, ParameterGroup, Start, methods_for
from quept.config import Reconstruction, WeightSpec
from quept.formats import eight_bit
from quept.formats.derivation import derive
from quept.layers.execution import Execution
from quept.layers.inputs import ElasticInput
from quept.layers.linear import ElasticLinear, weight_of
from quept.layers.weight import FrozenWeight, check_rank
from quept.numerics import affine


class RowsToRound(NamedTuple):
    """A grouped weight with a row for each scale, as compiled code takes it; see `TrainableWeight.rows_to_round`.

    weight, offset: `(scales, inputs)`. low, high: each row's minimum and maximum, `(scales, 1)`. clip_ratios:
    `(2, scales, 1)`.
    """

    weight: Tensor
    low: Tensor
    high: Tensor
    offset: Tensor
    clip_ratios: Tensor


class TrainableWeight:
    """The frozen master of a weight `(out, in)`, and the methods that learn how it is rounded.

    `master` is a float tensor, changed in place by transforms until `round_master` rounds it to what is stored; `exact`
    is what it was before, until starting values are found.
    `input_scale`, `(in,)`, is what transforms multiplied its columns by, or None where the settings have none that do.
    """

    def __init__(self, master: Tensor, spec: WeightSpec, path: str) -> None:
        self.out_features, self.in_features = master.shape
        check_rank(master.shape, spec, path)
        self.master, self.exact, self.spec, self.path = master, master, spec, path
        self.input_scale = (
            torch.ones(self.in_features, dtype=torch.float32, device=master.device) if spec.scaled else None
        )
        self.methods = methods_for(self)
        self._rounded: tuple[Tensor, Tensor] | None = None  # codes and scales of a stored master

    def float_master(self) -> Tensor:
        """Return the master in float32."""
        return self.master.to(torch.float32)

    def inputs_per_scale(self, bits: int) -> int:
        """Return the inputs that share a scale at `bits`."""
        return self.spec.inputs_per_scale(bits, self.in_features)

    def scales_per_row(self, bits: int) -> int:
        """Return the scales per output channel at `bits`."""
        return affine.groups_per_row(self.in_features, self.inputs_per_scale(bits))

    def is_symmetric(self, bits: int) -> bool:
        """Return whether the grid at `bits` is symmetric."""
        return bits in self.spec.granularity.symmetric_bits

    @torch.no_grad()
    def round_master(self, rows: Tensor | None = None) -> None:
        """Round the master to what a store keeps of it, before anything trains: what is trained is what ships.

        With inputs `rows`, `(tokens, in)`, errors of inputs make up for one another where that lowers the output's.
        """
        if self.spec.store.master_bits is None:
            return
        inputs, _ = eight_bit.master_groups(self.in_features, self.spec.store.group_size)
        self._rounded = eight_bit.round_master(self.float_master(), inputs, rows)
        self.exact = self.float_master()
        # In float32 whatever the block computes in: only there is it exact.
        self.master.data = eight_bit.dense_master(*self._rounded, inputs)

    def init(self, start: Start) -> None:
        """Find all methods' starting values."""
        for method in self.methods:
            method.init(start)
        self.exact = self.master

    def draw(self, generator: torch.Generator) -> None:
        """Draw all methods' random starting values."""
        for method in self.methods:
            method.draw(generator)

    def parameters(self, settings: Reconstruction, draws: Mapping[int, float]) -> Iterable[ParameterGroup]:
        """Return what an optimizer moves; `draws` says in how many steps each bit-width takes part."""
        for method in self.methods:
            yield from method.parameters(settings, draws)

    def derive(self, bits: int) -> Tensor:
        """Return the weight at `bits`, `(out, in)` in the master's dtype; differentiable in what the methods learn."""
        if bits == self.spec.store.master_bits:
            return self.master
        draft = Draft(bits, self.float_master())
        for method in self.methods:
            method.apply(draft)
        derived = derive(
            draft.weight,
            bits,
            self.inputs_per_scale(bits),
            clip_ratios=draft.clip_ratios,
            symmetric=self.is_symmetric(bits),
            rounding=draft.rounding,
        )
        grouped = derived.dequantized() if draft.dequantize is None else draft.dequantize(*derived[:2])
        return self.joined(grouped)

    def penalty(self, progress: float) -> Tensor | None:
        """Return the sum of the methods' regularisers for the bits that were derived last; None without any."""
        found = [penalty for method in self.methods if (penalty := method.penalty(progress)) is not None]
        return sum(found[1:], found[0]) if found else None

    def joined(self, grouped: Tensor) -> Tensor:
        """Return a grouped weight as `(out, in)` in the master's dtype."""
        return affine.join_groups(grouped, self.in_features).to(self.master.dtype)

    def rows_to_round(self, bits: int) -> RowsToRound | None:
        """Return the weight as rows, one for each scale, where clipping and offsets are all that is learned at `bits`.

        Of whatever layer and bit-width, these look alike, so that one compilation serves all. None elsewhere.
        """
        clipping, rounding = self.method(Clipping), self.method(LearnedRounding)
        plain = rounding is not None and bits in rounding.offsets and not self.spec.has_adapter(bits)
        if not plain or clipping is None or rounding is None or self.is_symmetric(bits):
            return None
        grouped = affine.split_groups(self.float_master(), self.inputs_per_scale(bits))
        low, high = rounding.min_max[bits]
        weight, low, high, offset = (each.flatten(0, 1) for each in (grouped, low, high, rounding.offsets[bits]))
        return RowsToRound(weight, low, high, offset, clipping.ratios(bits).flatten(1).unsqueeze(-1))

    def method(self, kind: type[Any]) -> Any:
        """Return the method of a class, or None."""
        return next((method for method in self.methods if type(method) is kind), None)

    def state(self) -> list[Tensor]:
        """Return all tensors but the master, for copies of the weight that share them."""
        learned = [tensor for method in self.methods for tensor in method.state()]
        scale = [] if self.input_scale is None else [self.input_scale]
        return [*learned, *scale, *(self._rounded or ())]

    @torch.no_grad()
    def freeze(self, frozen: FrozenWeight) -> FrozenWeight:
        """Write what was learned into `frozen`, an empty weight of the same shape and settings, and return it."""
        if frozen.store is None:
            frozen.weight.copy_(self.master)
        else:
            assert self._rounded is not None
            frozen.store.set_master(*self._rounded)
        if self.input_scale is not None:
            assert frozen.input_scale is not None
            frozen.input_scale.copy_(self.input_scale)
        for method in self.methods:
            method.freeze(frozen)
        return frozen


class TrainableLinear(nn.Module):
    """`x @ W.T + bias` of a block under calibration: with the master, or with the weight that a step has derived.

    Attributes:
        weight: the master, `(out, in)`; transforms change it in place.
        trainable: what is learned about it.
        current: the weight to multiply by, `(out, in)`; None is the master.
        activation_bits: of its inputs; None is full precision.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, spec: WeightSpec, path: str, input: ElasticInput | None
    ) -> None:
        super().__init__()
        self.path, self.spec, self.input = path, spec, input
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.out_features, self.in_features = weight.shape
        self.trainable = TrainableWeight(self.weight, spec, path)
        self.current: Tensor | None = None
        self.activation_bits: int | None = None
        self.execution = Execution()

    @classmethod
    def like(cls, linear: nn.Module, spec: WeightSpec, path: str, input: ElasticInput | None = None) -> Self:
        """Take over weight and bias of `nn.Linear` or transformers' `Conv1D`."""
        bias = linear.bias
        assert bias is None or isinstance(bias, Tensor)
        weight = weight_of(linear).detach().contiguous()
        return cls(weight, None if bias is None else bias.detach(), spec, path, input)

    @property
    def input_scale(self) -> Tensor | None:
        """The weight's `input_scale`."""
        return self.trainable.input_scale

    def forward(self, hidden: Tensor) -> Tensor:
        """Return `(..., out)` for `(..., in)`."""
        if self.input is not None:
            hidden = self.input(hidden, self.activation_bits, self.path)
        weight = self.weight if self.current is None else self.current
        return self.execution.multiply(F.linear, hidden, weight, self.bias)

    def freeze(self) -> ElasticLinear:
        """Return the elastic layer that runs what was learned."""
        layer = self.empty()
        self.trainable.freeze(layer)
        return layer

    def empty(self) -> ElasticLinear:
        """Return an elastic layer of this shape, for tensors that will be loaded."""
        return ElasticLinear(
            self.weight.shape,
            self.bias,
            self.spec,
            self.path,
            self.input,
            dtype=self.weight.dtype,
            device=self.weight.device,
        )
