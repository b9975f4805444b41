"""A linear layer that runs at every width of a set.

The master weight is frozen. What calibration learns is small: one pair of low-rank factors, of which each bit
group reads a slice (MB-CLoRA), two clipping logits per width and scale, and at the widths whose rounding is learned
one bit per weight. The weight at a width is derived from these; nothing else is stored, so every width always belongs
to the same model.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quept.errors import InvalidInput
from quept.nn.execution import Execution
from quept.nn.inputs import ElasticInput
from quept.nn.residency import DerivedWeights, Key, Sized
from quept.numerics import affine, integer, planes, ranges, rounding
from quept.numerics.packed import PackedWeight, packed_linear
from quept.spec import WeightSpec

WHOLE = 20.0  # sigmoid(20) is 1 in float32
CLIPPING_START = 4.0  # sigmoid(4) = 0.982: the range starts almost whole (method, section on the weight quantizer)


def weight_of(linear: nn.Module) -> Tensor:
    """The weight as `(out, in)`, a view, also of transformers' `Conv1D`, which stores `(in, out)`."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight if isinstance(linear, nn.Linear | ElasticLinear) else weight.t()


def _check_rank(weight: Tensor, spec: WeightSpec, path: str) -> None:
    """`InvalidInput` if the rank per group is above what a layer with this weight, `(out, in)`, can use."""
    if spec.adapter.kind != "none" and spec.adapter.rank > min(weight.shape):
        raise InvalidInput(
            f"The rank {spec.adapter.rank} is above the size of layer {path}, {' x '.join(map(str, weight.shape))}; "
            f"choose a rank of at most {min(weight.shape)}."
        )


def _without_leading(gradient: Tensor, dimension: int, count: int) -> Tensor:
    """A copy with the first `count` entries along `dimension` set to zero."""
    gradient = gradient.clone()
    gradient.narrow(dimension, 0, count).zero_()
    return gradient


class ElasticLinear(nn.Module):
    """`x @ W_b.T + bias`, with `W_b` derived from the master weight for the width `bits`.

    Parameters (float32 unless said otherwise; `R` is the total rank, `groups_b` the scales per row at width b):
        weight: master, `(out, in)`, in the checkpoint's dtype, frozen.
        bias: `(out,)` or absent, in the checkpoint's dtype.
        A, B: low-rank factors, `(R, in)` and `(out, R)`; `B` starts at zero.
        clipping.<b>: logits of the shares of the group's minimum and maximum, `(2, out, groups_b)`.
        planes.<b>: the rounding plane at a width whose rounding is learned, packed, `(out, ceil(in / 8))` uint8; see
            `quept.numerics.planes`. While it is being learned, an offset per weight stands in its place.
        input_scale: `(in,)`, what smoothing multiplied the columns by; needed only to tell what plain rounding of
            the unsmoothed weight would have been.
        input: what its inputs go through first, shared with the linears that read the same tensor; or absent.
    """

    is_matrix = True  # whether `hidden @ weight.T` is all that a forward pass computes
    bits: int | None
    activation_bits: int | None
    product_dtype: torch.dtype | None  # of the matrix product while training; None leaves it to the inputs
    weight: nn.Parameter
    bias: nn.Parameter | None
    input_scale: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor | None, spec: WeightSpec, path: str, input: ElasticInput | None = None
    ) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        _check_rank(weight, spec, path)
        self.spec, self.path = spec, path
        self.out_features, self.in_features = out_features, in_features
        self.bits = self.activation_bits = None
        self.product_dtype = None
        self.execution = Execution()
        self.override: Tensor | None = None
        self.residency: DerivedWeights | None = None
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        total = spec.adapter.total_rank(spec.groups)

        def learned(*shape: int, value: float = 0.0) -> nn.Parameter:
            data = torch.full(shape, value, dtype=torch.float32, device=weight.device)
            return nn.Parameter(data, requires_grad=False)

        self.A = learned(total, in_features)
        self.B = learned(out_features, total)
        self.clipping = nn.ParameterDict(
            {
                str(bits): learned(2, out_features, self.scales_per_row(bits), value=CLIPPING_START)
                for bits in spec.groups.bits
            }
        )
        self.planes = nn.ParameterDict({str(bits): self._plane() for bits in spec.learned_rounding})
        self.offsets: dict[int, nn.Parameter] = {}
        self._extremes: dict[int, tuple[Tensor, Tensor]] = {}  # while training, in which the master stays as it is
        self.register_buffer("input_scale", torch.ones(in_features, device=weight.device))
        self.input = input

    @classmethod
    def from_linear(cls, linear: nn.Module, spec: WeightSpec, path: str, input: ElasticInput | None = None) -> Self:
        """From `nn.Linear` or transformers' `Conv1D`, whose weight is `(in, out)`."""
        bias = linear.bias
        assert bias is None or isinstance(bias, Tensor)
        weight = weight_of(linear).detach().contiguous()
        return cls(weight, None if bias is None else bias.detach(), spec, path, input)

    def reset_adapter(self, generator: torch.Generator) -> None:
        """Draw `A` Kaiming-uniformly and set `B` to zero (method, MB-CLoRA)."""
        bound = self.in_features**-0.5
        drawn = torch.empty(self.A.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            self.A.copy_(drawn)
            self.B.zero_()

    @torch.no_grad()
    def reset_clipping(self, bits: int, start: float) -> None:
        """Set the logits of all shares at a width to `start`; from `WHOLE` on the range is not clipped at all."""
        self.clipping[str(bits)].fill_(start)

    @torch.no_grad()
    def search_clipping(self, bits: int, importance: Tensor) -> None:
        """Start each range at the share that rounds the master best.

        `importance`, `(in,)`, is the mean square of each input: errors are weighed by it.
        """
        grouped = self._split(self._master(), bits)
        share = ranges.best_share(grouped, bits, self._split(importance.unsqueeze(0), bits), self._is_symmetric(bits))
        # A whole range has no logit: it starts half a code short, or at the method's start if that is wider.
        nearly_whole = max(CLIPPING_START, math.log(2 * (2**bits - 1) - 1))
        self.clipping[str(bits)].copy_(torch.logit(share.squeeze(-1), eps=1e-6).clamp_max(nearly_whole))

    def run_at(self, bits: int | None, activation_bits: int | None) -> None:
        """Set both widths."""
        # Past the setter of modules, which looks for parameters first: with it, most of a switch would be that.
        self.__dict__["bits"], self.__dict__["activation_bits"] = bits, activation_bits

    def forward(self, hidden: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)` at the current widths."""
        if self._multiplies_integers(hidden):
            return self._integer_product(hidden)
        if self.input is not None:
            hidden = self.input(hidden, self.activation_bits, self.path)
        if self._multiplies_packed(hidden):
            # What has been rounded already is not rounded once more.
            exact = self.execution.exact or self.activation_bits is not None
            return packed_linear(hidden, self.current_packed(), self.bias, exact=exact)
        weight = self.current_weight()
        if self.product_dtype is None:
            return self._product(hidden, weight, self.bias)
        product = self._product(hidden.to(self.product_dtype), weight.to(self.product_dtype), None).to(hidden.dtype)
        return product if self.bias is None else product + self.bias

    def current_weight(self) -> Tensor:
        """The weight in force: an override, the master (`bits` is None), or the one derived for `bits`."""
        if self.override is not None:
            return self.override
        if self.bits is None:
            return self.weight
        if self.residency is None:
            return self.derive(self.bits)
        return self.residency.get(Key(self.path, self.bits, "dense"), self._derive_detached)

    def current_packed(self) -> PackedWeight:
        """The packed weight at the current width, which is not full precision."""
        assert self.bits is not None
        if self.residency is None:
            return self.pack(self.bits)
        return self.residency.get(Key(self.path, self.bits, "packed"), self.pack)

    def pack(self, bits: int) -> PackedWeight:
        """The weight at `bits` in as many bits, with its scales and zero points."""
        with torch.inference_mode(False), torch.no_grad():
            codes, grid = self.codes(bits)
            flat = affine.join_groups(codes, self.in_features)
            scale, zero_point = grid.scale.squeeze(-1), grid.zero_point.squeeze(-1)
            return PackedWeight.of(flat, scale, zero_point, bits, self._inputs_per_scale(bits))

    def forget_derived(self) -> None:
        """Drop what is resident of this layer's weight at any width."""
        if self.residency is not None:
            self.residency.forget(self.path)

    def forms(self, bits: int, activation_bits: int | None) -> tuple[Key, Callable[[int], Sized]]:
        """What a forward pass at these widths would make resident, and how it is made."""
        if self._has_integers(bits, activation_bits):
            return Key(self.path, bits, "integers"), self._integer_weight
        if self.execution.packed and self.is_matrix:
            return Key(self.path, bits, "packed"), self.pack
        return Key(self.path, bits, "dense"), self._derive_detached

    def _multiplies_packed(self, hidden: Tensor) -> bool:
        """Whether the packed weight is multiplied: where no gradient is needed."""
        if not (self.execution.packed and self.is_matrix) or self.bits is None or self.override is not None:
            return False
        return not (torch.is_grad_enabled() and hidden.requires_grad)

    def _multiplies_integers(self, hidden: Tensor) -> bool:
        """Whether codes are multiplied instead of what they stand for: where that is possible."""
        if not self.execution.integers or self.override is not None or torch.is_grad_enabled():
            return False
        if self.bits is None or self.residency is None or not self._has_integers(self.bits, self.activation_bits):
            return False
        assert self.input is not None
        return self.input.quantizer.override is None and integer.supported(hidden.device)

    def _has_integers(self, bits: int, activation_bits: int | None) -> bool:
        """Whether these widths can be multiplied as integers, where the device can."""
        if not (self.execution.integers and self.is_matrix) or activation_bits is None:
            return False
        if self.scales_per_row(bits) > 1:
            return False
        return self.input is not None and self.input.has_token_ranges and self.in_features <= integer.LARGEST_IN

    def _product(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(hidden, weight, bias)

    def _integer_product(self, hidden: Tensor) -> Tensor:
        assert self.bits is not None
        assert self.activation_bits is not None
        assert self.input is not None
        assert self.residency is not None
        tokens = self.input.codes(hidden, self.activation_bits, self.path)
        weight = self.residency.get(Key(self.path, self.bits, "integers"), self._integer_weight)
        return integer.integer_linear(tokens, weight, self.bias, hidden.dtype)

    def _integer_weight(self, bits: int) -> integer.IntegerWeight:
        with torch.inference_mode(False), torch.no_grad():
            codes, grid = self.codes(bits)
            device = self.weight.device
            return integer.IntegerWeight.of(codes.squeeze(1), grid.scale.flatten(), grid.zero_point.flatten(), device)

    def derive(self, bits: int) -> Tensor:
        """The dequantized weight at `bits`, `(out, in)` in the master's dtype; differentiable."""
        return self._join(affine.fake_quantize(*self._plan(bits)))

    def derive_soft(self, bits: int) -> tuple[Tensor, Tensor]:
        """For the rounding policy in training: the softly rounded weight, and its shares of rounding up."""
        grouped, to, _ = self._plan(bits, harden=False)
        adapter = self._adapter(bits)
        assert adapter is not None
        soft, up = rounding.soft_round(grouped, to, self._split(adapter, bits))
        return self._join(soft), up

    def codes(self, bits: int) -> tuple[Tensor, affine.Grid]:
        """The integer codes at `bits`, `(out, groups, inputs)` uint8, and their grid."""
        with torch.no_grad():
            grouped, to, offset = self._plan(bits)
            return affine.codes(grouped, to, offset), to

    def nearest(self, bits: int) -> Tensor:
        """Plain rounding to nearest of the unsmoothed master at the same granularity: the baseline, `(out, in)`."""
        with torch.no_grad():
            grouped = self._split(self._master() / self.input_scale, bits)
            to = affine.grid(grouped, bits, symmetric=self._is_symmetric(bits))
            rounded = affine.fake_quantize(grouped, to)
            return self._join(rounded, self.input_scale)

    def scales_per_row(self, bits: int) -> int:
        """Scales per output channel at `bits`."""
        return affine.groups_per_row(self.in_features, self._inputs_per_scale(bits))

    def trains_softly(self, bits: int) -> bool:
        """Whether the adapter at this width is a rounding policy, which trains softly."""
        return self.spec.adapter.entry == "rounding" and self.has_adapter(bits)

    def learned(self) -> dict[str, Tensor]:
        """What the layer has beside weight and bias, by name: of the same dtype whatever the model's."""
        clipping = {f"clipping.{bits}": value for bits, value in self.clipping.items()}
        rounding_planes = {f"planes.{bits}": value for bits, value in self.planes.items()}
        return {"A": self.A, "B": self.B, "input_scale": self.input_scale, **clipping, **rounding_planes}

    def learn_rounding(self) -> dict[int, nn.Parameter]:
        """Put trainable offsets, zero steps each and shaped like the grouped weight, in place of the planes."""
        for bits in self.spec.learned_rounding:
            grouped = self._split(self._master(), bits)
            self.offsets[bits] = nn.Parameter(torch.zeros_like(grouped))
            self._extremes[bits] = affine.extremes(grouped)
        return self.offsets

    @torch.no_grad()
    def settle_rounding(self) -> None:
        """Turn the offsets into planes. The codes stay as they are, but where an offset moved a weight off a code."""
        for bits in list(self.offsets):
            grouped, to, offset = self._plan(bits)
            assert offset is not None
            turned = affine.join_groups(planes.turned(grouped, to, offset), self.in_features)
            del self.offsets[bits], self._extremes[bits]
            self.planes[str(bits)].copy_(planes.pack(turned))

    def has_adapter(self, bits: int) -> bool:
        """Whether a width has an adapter."""
        return bool(self.spec.adapter.columns(bits, self.spec.groups).stop > 0)

    def frozen_range(self, bits: int) -> tuple[Tensor, Tensor, Tensor]:
        """While rounding is learned, without an adapter: the grouped master, and each group's unclipped range."""
        return self._split(self._master(), bits), *self._extremes[bits]

    def joined(self, grouped: Tensor) -> Tensor:
        """A grouped weight as `(out, in)`, in the master's dtype."""
        return self._join(grouped)

    def adapter_factors(self) -> list[nn.Parameter]:
        """`A` and `B`, or nothing where there is no adapter."""
        return [self.A, self.B] if self.A.numel() else []

    def _plan(self, bits: int, harden: bool = True) -> tuple[Tensor, affine.Grid, Tensor | None]:
        """What is rounded, onto which grid, and by which offset: the three places where an adapter can enter."""
        adapter = self._adapter(bits)
        entry = "weight" if adapter is None else self.spec.adapter.entry
        master = self._master()
        if adapter is not None and entry == "weight":
            master = master + adapter
        grouped = self._split(master, bits)
        low, high = torch.sigmoid(self.clipping[str(bits)]).unsqueeze(-1)
        to = affine.grid(grouped, bits, low, high, self._is_symmetric(bits))
        if bits in self.offsets:
            return grouped, to, self.offsets[bits]
        if bits in self.spec.learned_rounding:
            plane = planes.unpack(self.planes[str(bits)], self.in_features)
            return grouped, to, planes.plane_offset(grouped, to, self._split(plane, bits))
        if adapter is None or entry == "weight" or not harden:
            return grouped, to, None
        steps = self._split(adapter, bits)
        return grouped, to, steps if entry == "scale" else rounding.hard_offset(grouped, to, steps)

    def _adapter(self, bits: int) -> Tensor | None:
        """`B A`, `(out, in)`, of the columns that this width uses; None where it has no adapter."""
        adapter = self.spec.adapter
        columns = adapter.columns(bits, self.spec.groups)
        if columns.stop == 0:
            return None
        up, down = self.B[:, columns], self.A[columns]
        if adapter.isolated and up.requires_grad:
            # The forward pass must stay the same product, so the gradient is what is cut.
            shared = columns.stop - adapter.rank
            for factor, dimension in ((up, 1), (down, 0)):
                factor.register_hook(partial(_without_leading, dimension=dimension, count=shared))  # type: ignore[no-untyped-call]
        return up @ down

    def _plane(self) -> nn.Parameter:
        packed = torch.zeros(
            self.out_features, planes.bytes_per_row(self.in_features), dtype=torch.uint8, device=self.weight.device
        )
        return nn.Parameter(packed, requires_grad=False)

    def _derive_detached(self, bits: int) -> Tensor:
        # Kept weights outlive the call, and one made in inference mode could not be used outside it.
        with torch.inference_mode(False), torch.no_grad():
            return self.derive(bits)

    def _master(self) -> Tensor:
        return self.weight.to(torch.float32)

    def _inputs_per_scale(self, bits: int) -> int:
        return self.spec.granularity.inputs_per_scale(bits, self.in_features)

    def _is_symmetric(self, bits: int) -> bool:
        return bits in self.spec.granularity.symmetric_bits

    def _split(self, weight: Tensor, bits: int) -> Tensor:
        return affine.split_groups(weight, self._inputs_per_scale(bits))

    def _join(self, grouped: Tensor, input_scale: Tensor | None = None) -> Tensor:
        weight = affine.join_groups(grouped, self.in_features)
        if input_scale is not None:
            weight = weight * input_scale
        return weight.to(self.weight.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move with the model, but keep what was learned in float32."""
        before = {name: value.detach() for name, value in self.learned().items()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            owner, _, leaf = name.rpartition(".")
            moved = getattr(self, leaf) if not owner else getattr(self, owner)[leaf]
            if moved.dtype != value.dtype:
                moved.data = value.to(moved.device)
        self.forget_derived()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.forget_derived()

    def extra_repr(self) -> str:
        """Shape, widths and rank, for `print(model)`."""
        widths = ",".join(map(str, self.spec.groups.bits))
        return f"in={self.in_features}, out={self.out_features}, widths={widths}, rank={self.A.shape[0]}"
