"""The interface of a method: one thing that calibration learns about how a weight is rounded.

A `TrainableWeight` has one instance of each of its methods, which act one after the other on a draft of the derivation:

    draw(generator)            random starting values; called for all weights of a block in order
    init(start)                starting values that depend on the weight and on its inputs
    parameters(settings, ...)  what an optimizer moves, by rule and learning rate
    apply(draft)               change how the weight is derived at a bit-width; differentiable
    penalty(progress)          a regulariser of the last `apply`, or None
    freeze(frozen)             write what was learned in the form that is stored
    state()                    all tensors held, so that copies of the weight can share them
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from quept.calibration.optimizer import OptimizerRule
from quept.config import Reconstruction, WeightSpec
from quept.formats import packing
from quept.formats.derivation import Rounding
from quept.layers.weight import FrozenWeight
from quept.numerics import affine, rounding_mask
from quept.numerics.affine import Grid


@dataclass
class Draft:
    """A derivation in the making; see `quept.formats.derivation.derive` for the fields.

    `dequantize`, where it is set, takes the place of rounding: from the grouped weight and its grid to the weight.
    """

    bits: int
    weight: Tensor
    clip_ratios: Tensor | None = None
    rounding: Rounding | None = None
    dequantize: Callable[[Tensor, Grid], Tensor] | None = None


@dataclass(frozen=True)
class Start:
    """The facts that starting values may depend on.

    Attributes:
        bits: bit-widths that a weight is rounded to; those in `idle` never train.
        clip_init: where ranges start: the logit of the clip ratio, or "search".
        importance: mean square of each input, `(in,)`, for a search; or None.
        rows: the inputs themselves, `(tokens, in)`; or None.
    """

    bits: Sequence[int]
    idle: frozenset[int]
    clip_init: float | str
    importance: Tensor | None = None
    rows: Tensor | None = None


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that one rule moves at one learning rate."""

    rule: OptimizerRule
    learning_rate: float
    parameters: list[Tensor] = field(default_factory=list)


class Weight(Protocol):
    """The weight that methods learn about, as they see it; see `TrainableWeight`."""

    master: Tensor
    exact: Tensor
    spec: WeightSpec
    path: str
    out_features: int
    in_features: int

    def float_master(self) -> Tensor:
        """Return the master in float32."""

    def inputs_per_scale(self, bits: int) -> int:
        """Return the inputs that share a scale at `bits`."""

    def scales_per_row(self, bits: int) -> int:
        """Return the scales per output channel at `bits`."""

    def is_symmetric(self, bits: int) -> bool:
        """Return whether the grid at `bits` is symmetric."""


class Method:
    """Learns nothing and changes nothing: methods override what they need. `weight` is the one it belongs to."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight

    def draw(self, generator: torch.Generator) -> None:
        """Draw random starting values."""

    def init(self, start: Start) -> None:
        """Find starting values, once the master is rounded to what is stored."""

    def parameters(self, settings: Reconstruction, draws: Mapping[int, float]) -> Iterable[ParameterGroup]:
        """Return what trains; `draws` says in how many steps each bit-width takes part, on average."""
        return ()

    def apply(self, draft: Draft) -> None:
        """Change the draft of a derivation."""

    def penalty(self, progress: float) -> Tensor | None:
        """Return a regulariser of the last `apply`; `progress` goes from 0 to 1 over the training."""
        return None

    def freeze(self, frozen: FrozenWeight) -> None:
        """Write what was learned into `frozen`, in the form that is stored."""

    def state(self) -> Iterable[Tensor]:
        """Return all tensors that the method holds."""
        return ()

    def learnable(self, *shape: int, value: float = 0.0) -> nn.Parameter:
        """Return a parameter of this shape, float32, on the weight's device."""
        data = torch.full(shape, value, dtype=torch.float32, device=self.weight.master.device)
        return nn.Parameter(data)


class RoundingMethod(Method):
    """A method that decides how weights are rounded at the bit-widths of `learned_rounding`.

    It has to give `offset` alone: where that leads to another code than the nearest is kept as one bit per weight.
    """

    @property
    def bits(self) -> Sequence[int]:
        """Bit-widths whose rounding it decides."""
        return self.weight.spec.learned_rounding

    def offset(self, bits: int, grouped: Tensor, grid: Grid) -> Tensor:
        """Return offsets in steps, shaped like the grouped weight, `(out, groups, inputs)`."""
        raise NotImplementedError

    def apply(self, draft: Draft) -> None:
        """Round with the offsets."""
        if draft.bits in self.bits:
            bits = draft.bits
            draft.rounding = lambda grouped, grid: self.offset(bits, grouped, grid)

    def freeze(self, frozen: FrozenWeight) -> None:
        """Keep a rounding mask for each bit-width: of the weight as it is stored, not as it was trained."""
        for bits in self.bits:
            grouped, grid, _ = frozen.derivation(bits, masks=False)
            flipped = rounding_mask.flipped(grouped, grid, self.offset(bits, grouped, grid))
            mask = affine.join_groups(flipped, frozen.in_features)
            frozen.planes[str(bits)].copy_(packing.pack(mask.to(torch.uint8), 1))


def straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    """Return `rounded` with the gradient of `value`."""
    return value + (rounded - value).detach()
