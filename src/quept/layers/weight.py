"""The weight of an elastic layer, derived for every width of a set.

The master weight is frozen. What calibration learns is small: one pair of low-rank factors, of which each bit
group reads a slice (MB-CLoRA), two clipping logits per width and scale, and at the widths whose rounding is learned
one bit per weight. The weight at a width is derived from these; nothing else is stored, so every width always belongs
to the same model. A layer whose settings have a store keeps all of it in 8 bits once it is calibrated.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quept.config import WeightSpec
from quept.errors import InvalidInput
from quept.formats import eight_bit
from quept.formats.stored import StoredWeight
from quept.layers.eight_bit import EightBitStore
from quept.numerics import adaround, affine, clipping, rounding_mask

UNCLIPPED = 20.0  # sigmoid(20) is 1 in float32
CLIPPING_START = 4.0  # sigmoid(4) = 0.982: the range starts almost whole (method, section on the weight quantizer)


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


def _straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    """What it was rounded to, with the gradient of the value."""
    return value + (rounded - value).detach()


class FrozenWeight(nn.Module):
    """A weight `(out, in)` at every width of a set.

    Parameters (float32 unless said otherwise; `R` is the total rank, `groups_b` the scales per row at width b):
        weight: master, `(out, in)`, in the checkpoint's dtype, frozen.
        A, B: low-rank factors, `(R, in)` and `(out, R)`; `B` starts at zero.
        clipping.<b>: logits of the shares of the group's minimum and maximum, `(2, out, groups_b)`.
        store: in the place of these, where settings have one and the layer is calibrated; see `EightBitStore`.
        planes.<b>: the rounding plane at a width whose rounding is learned, packed, `(out, ceil(in / 8))` uint8; see
            `quept.numerics.rounding_mask`. While it is being learned, an offset per weight stands in its place.
        input_scale: `(in,)`, what smoothing multiplied the columns by; needed only to tell what plain rounding of
            the unsmoothed weight would have been. None in a store whose recipe has nothing that does so.
    """

    weight: nn.Parameter
    input_scale: Tensor | None
    store: EightBitStore | None

    def __init__(self, weight: Tensor, spec: WeightSpec, path: str) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        _check_rank(weight, spec, path)
        self.spec, self.path = spec, path
        self.out_features, self.in_features = out_features, in_features
        self.weight = nn.Parameter(weight, requires_grad=False)
        total = spec.adapter.total_rank(spec.groups)

        def learned(*shape: int, value: float = 0.0) -> nn.Parameter:
            data = torch.full(shape, value, dtype=torch.float32, device=weight.device)
            return nn.Parameter(data, requires_grad=False)

        self.A = learned(total, in_features)
        self.B = learned(out_features, total)
        self.clipping = nn.ParameterDict(
            {
                str(bits): learned(2, out_features, self.scales_per_row(bits), value=CLIPPING_START)
                for bits in spec.store.without_master(spec.groups.bits)
            }
        )
        self.planes = nn.ParameterDict({str(bits): self._plane() for bits in spec.learned_rounding})
        self.offsets: dict[int, nn.Parameter] = {}
        self._min_max: dict[int, tuple[Tensor, Tensor]] = {}  # while training, in which the master stays as it is
        self.register_buffer("input_scale", torch.ones(in_features, device=weight.device) if spec.scaled else None)
        self.store = None
        self._form = torch.empty(0, dtype=weight.dtype)  # of what comes out of a store: goes where the model goes

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that the layer multiplies by, at whatever width."""
        return self.weight.dtype if self.store is None else self._form.dtype

    @property
    def device(self) -> torch.device:
        """Where the layer is."""
        return next(self.parameters()).device

    @property
    def numel(self) -> int:
        """How many weights the layer has."""
        return self.out_features * self.in_features

    @property
    def master_bits(self) -> int | None:
        """The width of the master where it is stored; None where it is as exact as the checkpoint."""
        return self.spec.store.master_bits

    @property
    def is_stored(self) -> bool:
        """Whether all that there is of the weight is a store."""
        return self._kept is not None

    def rebuilds(self, bits: int) -> bool:
        """Whether a kernel can rebuild a width out of the store: not the master's own, nor offsets in steps."""
        if self._kept is None or bits == self.master_bits:
            return False
        return self.spec.adapter.entry == "weight" or not self.has_adapter(bits)

    def packs_master(self, bits: int) -> bool:
        """Whether a width is the stored master as it is: 8 bits with a scale per row, on a CPU."""
        return (
            self.is_stored and bits == self.master_bits and self.scales_per_row(bits) == 1 and self.device.type == "cpu"
        )

    def master(self) -> Tensor:
        """The master weight, `(out, in)` in the layer's dtype; out of a store it is made anew at every call."""
        return self.weight if self._kept is None else self._join(self._master())

    def come_out_in(self, dtype: torch.dtype) -> None:
        """From now on weights from a store come out in `dtype`."""
        self._form = self._form.to(dtype)

    def reset_adapter(self, generator: torch.Generator) -> None:
        """Draw `A` Kaiming-uniformly and set `B` to zero (method, MB-CLoRA)."""
        bound = self.in_features**-0.5
        drawn = torch.empty(self.A.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            self.A.copy_(drawn)
            self.B.zero_()

    @torch.no_grad()
    def reset_clipping(self, bits: int, start: float) -> None:
        """Set the logits of all shares at a width to `start`; from `UNCLIPPED` on the range is not clipped at all."""
        self.clipping[str(bits)].fill_(start)

    @torch.no_grad()
    def search_clipping(self, bits: int, importance: Tensor) -> None:
        """Start each range at the share that rounds the master best.

        `importance`, `(in,)`, is the mean square of each input: errors are weighed by it.
        """
        grouped = self._split(self._master(), bits)
        clip_ratio = clipping.best_clip_ratio(
            grouped, bits, self._split(importance.unsqueeze(0), bits), self._is_symmetric(bits)
        )
        # A whole range has no logit: it starts half a code short, or at the method's start if that is wider.
        nearly_whole = max(CLIPPING_START, math.log(2 * (2**bits - 1) - 1))
        self.clipping[str(bits)].copy_(torch.logit(clip_ratio.squeeze(-1), eps=1e-6).clamp_max(nearly_whole))

    def derive(self, bits: int) -> Tensor:
        """The dequantized weight at `bits`, `(out, in)` in the layer's dtype; differentiable."""
        if self._is_master(bits):
            return self._join(self._master())
        return self._join(affine.fake_quantize(*self._plan(bits)))

    def derive_soft(self, bits: int) -> tuple[Tensor, Tensor]:
        """For the rounding policy in training: the softly rounded weight, and its shares of rounding up."""
        grouped, to, _ = self._plan(bits, harden=False)
        adapter = self._adapter(bits)
        assert adapter is not None
        soft, up = adaround.soft_round(grouped, to, self._split(adapter, bits))
        return self._join(soft), up

    def codes(self, bits: int) -> tuple[Tensor, affine.Grid]:
        """The integer codes at `bits`, `(out, groups, inputs)` uint8, and their grid."""
        with torch.no_grad():
            if self._is_master(bits):
                return self._master_codes(bits)
            grouped, to, offset = self._plan(bits)
            return affine.codes(grouped, to, offset), to

    def nearest(self, bits: int) -> Tensor:
        """Plain rounding to nearest of the unsmoothed master at the same granularity: the baseline, `(out, in)`.

        At the width of a stored master, the master, which is rounded to nearest.
        """
        with torch.no_grad():
            if self._is_master(bits):
                return self.derive(bits)
            master = self._master()
            grouped = self._split(master if self.input_scale is None else master / self.input_scale, bits)
            to = affine.grid(grouped, bits, symmetric=self._is_symmetric(bits))
            rounded = affine.fake_quantize(grouped, to)
            return self._join(rounded, self.input_scale)

    def scales_per_row(self, bits: int) -> int:
        """Scales per output channel at `bits`."""
        return affine.groups_per_row(self.in_features, self._inputs_per_scale(bits))

    def trains_softly(self, bits: int) -> bool:
        """Whether the adapter at this width is a rounding policy, which trains softly."""
        return self.spec.adapter.entry == "rounding" and self.has_adapter(bits)

    def has_adapter(self, bits: int) -> bool:
        """Whether a width has an adapter."""
        return bool(self.spec.adapter.columns(bits, self.spec.groups).stop > 0)

    def learned(self) -> dict[str, Tensor]:
        """What the layer has beside weight and bias, by name: of the same dtype whatever the model's."""
        found: dict[str, Tensor] = {f"planes.{bits}": value for bits, value in self.planes.items()}
        if self.input_scale is not None:
            found["input_scale"] = self.input_scale
        if self._kept is not None:
            return found | {f"store.{name}": value for name, value in self._kept.learned().items()}
        clipping = {f"clipping.{bits}": value for bits, value in self.clipping.items()}
        return {"A": self.A, "B": self.B, **clipping, **found}

    def adapter_factors(self) -> list[nn.Parameter]:
        """`A` and `B`, or nothing where there is no adapter."""
        return [self.A, self.B] if self.A.numel() else []

    def frozen_range(self, bits: int) -> tuple[Tensor, Tensor, Tensor]:
        """While rounding is learned, without an adapter: the grouped master, and each group's unclipped range."""
        return self._split(self._master(), bits), *self._min_max[bits]

    def clip_ratios(self, bits: int) -> Tensor:
        """The shares of minima and maxima kept, `(2, out, groups_b)`; while they train, as they will be stored."""
        if self._kept is not None:
            return self._kept.clip_ratios(bits)
        found = torch.sigmoid(self.clipping[str(bits)])
        if self.store is None:
            return found
        width = self.store.clip_ratio_bits(bits)
        return _straight_through(
            found, eight_bit.clip_ratios(eight_bit.round_clip_ratios(found.detach(), width), width)
        )

    def joined(self, grouped: Tensor) -> Tensor:
        """A grouped weight as `(out, in)`, in the layer's dtype."""
        return self._join(grouped)

    def learn_rounding(self) -> dict[int, nn.Parameter]:
        """Put trainable offsets, zero steps each and shaped like the grouped weight, in place of the planes."""
        for bits in self.spec.learned_rounding:
            grouped = self._split(self._master(), bits)
            self.offsets[bits] = nn.Parameter(torch.zeros_like(grouped))
            self._min_max[bits] = affine.min_max(grouped)
        return self.offsets

    def learning(self) -> list[Tensor]:
        """Return what the layer has, while rounding is learned, beside parameters and buffers."""
        return [*self.offsets.values(), *(end for ends in self._min_max.values() for end in ends)]

    @torch.no_grad()
    def round_master(self) -> None:
        """Where there is a store, round the weight to its master; from now on the weight is what that stands for."""
        if self.master_bits is None:
            return
        self.store = EightBitStore(self.weight.shape, self.spec, self.device)
        self.store.round_master(self.weight)
        # In float32 whatever the block computes in: only there is it exact.
        self.weight.data = self.store.weight()

    @torch.no_grad()
    def freeze(self) -> None:
        """End the training: what was learned takes the form that it is stored in.

        Offsets become planes. The codes stay as they are, but where an offset moved a weight off a code, and where
        factors and shares are rounded to those of a store.
        """
        if self.store is not None:
            clip_ratios = {
                bits: self.clip_ratios(bits) for bits in self.spec.store.without_master(self.spec.groups.bits)
            }
            self.store.round_learned(self.B, self.A, clip_ratios)
            self._keep_store()
        for bits in list(self.offsets):
            grouped, to, offset = self._plan(bits)
            assert offset is not None
            flipped = affine.join_groups(rounding_mask.flipped(grouped, to, offset), self.in_features)
            del self.offsets[bits], self._min_max[bits]
            self.planes[str(bits)].copy_(rounding_mask.pack(flipped))

    def empty(self) -> None:
        """Take the form that is stored, with nothing in it yet: for what will be loaded."""
        if self.master_bits is not None:
            self.store = EightBitStore(torch.Size((self.out_features, self.in_features)), self.spec, self.device)
            self._keep_store()

    def stored_weight(self, bits: int) -> StoredWeight:
        """What a kernel rebuilds a width from, in a store."""
        assert self._kept is not None
        self.spec.groups.index(bits)
        return self._kept.stored_weight(bits, self.planes[str(bits)] if bits in self.spec.learned_rounding else None)

    def _plan(self, bits: int, harden: bool = True) -> tuple[Tensor, affine.Grid, Tensor | None]:
        """What is rounded, onto which grid, and by which offset: the three places where an adapter can enter."""
        adapter = self._adapter(bits)
        entry = "weight" if adapter is None else self.spec.adapter.entry
        master = self._master()
        if adapter is not None and entry == "weight":
            master = master + adapter
        grouped = self._split(master, bits)
        low, high = self.clip_ratios(bits).unsqueeze(-1)
        to = affine.grid(grouped, bits, low, high, self._is_symmetric(bits))
        if bits in self.offsets:
            return grouped, to, self.offsets[bits]
        if bits in self.spec.learned_rounding:
            plane = rounding_mask.unpack(self.planes[str(bits)], self.in_features)
            return grouped, to, rounding_mask.plane_offset(grouped, to, self._split(plane, bits))
        if adapter is None or entry == "weight" or not harden:
            return grouped, to, None
        steps = self._split(adapter, bits)
        return grouped, to, steps if entry == "scale" else adaround.hard_offset(grouped, to, steps)

    def _adapter(self, bits: int) -> Tensor | None:
        """`B A`, `(out, in)`, of the columns that this width uses; None where it has no adapter."""
        adapter = self.spec.adapter
        columns = adapter.columns(bits, self.spec.groups)
        if columns.stop == 0:
            return None
        if self._kept is not None:
            return self._kept.adapter(columns)
        up, down = self.B[:, columns], self.A[columns]
        if adapter.isolated and up.requires_grad:
            # The forward pass must stay the same product, so the gradient is what is cut.
            shared = columns.stop - adapter.rank
            for factor, dimension in ((up, 1), (down, 0)):
                factor.register_hook(partial(_without_leading, dimension=dimension, count=shared))  # type: ignore[no-untyped-call]
        found = up @ down
        if self.store is not None:
            found = _straight_through(found, self._rounded_adapter(columns))
        return found

    @torch.no_grad()
    def _rounded_adapter(self, columns: slice) -> Tensor:
        up, down, scale = eight_bit.round_factors(self.B, self.A)
        return eight_bit.product(up[:, columns], down[columns], scale)

    @property
    def _kept(self) -> EightBitStore | None:
        """The store, once there is nothing else."""
        return None if "weight" in self._parameters else self.store

    def _keep_store(self) -> None:
        del self.weight, self.A, self.B
        self.clipping.clear()

    def _plane(self) -> nn.Parameter:
        packed = torch.zeros(
            self.out_features,
            rounding_mask.bytes_per_row(self.in_features),
            dtype=torch.uint8,
            device=self.weight.device,
        )
        return nn.Parameter(packed, requires_grad=False)

    def _master(self) -> Tensor:
        return self.weight.to(torch.float32) if self._kept is None else self._kept.weight()

    def _master_codes(self, bits: int) -> tuple[Tensor, affine.Grid]:
        assert self.store is not None
        middle = 2 ** (bits - 1)
        codes = self._split(self.store.master, bits).to(torch.int16).add_(middle).to(torch.uint8)
        scale = self.store.master_scale.to(torch.float32).unsqueeze(-1)
        return codes, affine.Grid(scale, torch.full_like(scale, middle), 2**bits - 1)

    def _inputs_per_scale(self, bits: int) -> int:
        return self.spec.inputs_per_scale(bits, self.in_features)

    def _is_master(self, bits: int) -> bool:
        """Whether a width is the master's, which is stored as it is."""
        return self.store is not None and bits == self.master_bits

    def _is_symmetric(self, bits: int) -> bool:
        return bits in self.spec.granularity.symmetric_bits

    def _split(self, weight: Tensor, bits: int) -> Tensor:
        return affine.split_groups(weight, self._inputs_per_scale(bits))

    def _join(self, grouped: Tensor, input_scale: Tensor | None = None) -> Tensor:
        weight = affine.join_groups(grouped, self.in_features)
        if input_scale is not None:
            weight = weight * input_scale
        return weight.to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move with the model, but keep what was learned as it is."""
        before = {name: value.detach() for name, value in self.learned().items()}
        self._form = fn(self._form)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = self.learned()
        for name, value in before.items():
            if after[name].dtype != value.dtype:
                after[name].data = value.to(after[name].device)
        return self
