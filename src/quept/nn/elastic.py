"""A linear layer that runs at every width of a set.

The master weight is frozen. What calibration learns is small: one pair of low-rank factors, of which each bit
group reads a slice (MB-CLoRA), and two clipping logits per width and scale. The weight at a width is derived from
these three; nothing else is stored, so every width always belongs to the same model.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quept.errors import InvalidInput
from quept.nn.residency import DerivedWeights
from quept.numerics import affine, rounding
from quept.spec import WeightSpec

CLIPPING_START = 4.0  # sigmoid(4) = 0.982: the range starts almost whole (method, section on the weight quantizer)


def weight_of(linear: nn.Module) -> Tensor:
    """The weight as `(out, in)`, a view, of `nn.Linear` or of transformers' `Conv1D`, which stores `(in, out)`."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight if isinstance(linear, nn.Linear) else weight.t()


def _check_rank(weight: Tensor, spec: WeightSpec, path: str) -> None:
    """`InvalidInput` if the rank per group is above what a layer with this weight, `(out, in)`, can use."""
    if spec.adapter.kind != "none" and spec.adapter.rank > min(weight.shape):
        raise InvalidInput(
            f"The rank {spec.adapter.rank} is above the size of layer {path}, {' x '.join(map(str, weight.shape))}; "
            f"choose a rank of at most {min(weight.shape)}."
        )


class ElasticLinear(nn.Module):
    """`x @ W_b.T + bias`, with `W_b` derived from the master weight for the width `bits`.

    Parameters (float32 unless said otherwise; `R` is the total rank, `groups_b` the scales per row at width b):
        weight: master, `(out, in)`, in the checkpoint's dtype, frozen.
        bias: `(out,)` or absent, in the checkpoint's dtype.
        A, B: low-rank factors, `(R, in)` and `(out, R)`; `B` starts at zero.
        clipping.<b>: logits of the shares of the group's minimum and maximum, `(2, out, groups_b)`.
        input_scale: `(in,)`, what smoothing multiplied the columns by; needed only to tell what plain rounding of
            the unsmoothed weight would have been.
    """

    bits: int | None
    weight: nn.Parameter
    bias: nn.Parameter | None
    input_scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, spec: WeightSpec, path: str) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        _check_rank(weight, spec, path)
        self.spec, self.path = spec, path
        self.out_features, self.in_features = out_features, in_features
        self.bits = None
        self.override: Tensor | None = None
        self.residency: DerivedWeights | None = None
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        total = spec.adapter.total_rank(len(spec.groups))

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
        self.register_buffer("input_scale", torch.ones(in_features, device=weight.device))

    @classmethod
    def from_linear(cls, linear: nn.Module, spec: WeightSpec, path: str) -> Self:
        """From `nn.Linear` or transformers' `Conv1D`, whose weight is `(in, out)`."""
        bias = linear.bias
        assert bias is None or isinstance(bias, Tensor)
        weight = weight_of(linear).detach().contiguous()
        return cls(weight, None if bias is None else bias.detach(), spec, path)

    def reset_adapter(self, generator: torch.Generator) -> None:
        """Draw `A` Kaiming-uniformly and set `B` to zero (method, MB-CLoRA)."""
        bound = self.in_features**-0.5
        drawn = torch.empty(self.A.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            self.A.copy_(drawn)
            self.B.zero_()

    def forward(self, hidden: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)` at the current width."""
        return F.linear(hidden, self.current_weight(), self.bias)

    def current_weight(self) -> Tensor:
        """The weight in force: an override, the master (`bits` is None), or the one derived for `bits`."""
        if self.override is not None:
            return self.override
        if self.bits is None:
            return self.weight
        if self.residency is None:
            return self.derive(self.bits)
        return self.residency.get(self.path, self.bits, self._derive_detached)

    def derive(self, bits: int) -> Tensor:
        """The dequantized weight at `bits`, `(out, in)` in the master's dtype; differentiable."""
        return self._join(affine.fake_quantize(*self._plan(bits)))

    def derive_soft(self, bits: int) -> tuple[Tensor, Tensor]:
        """For the rounding policy in training: the softly rounded weight, and its shares of rounding up."""
        grouped, to, _ = self._plan(bits, harden=False)
        soft, up = rounding.soft_round(grouped, to, self._split(self._adapter(bits), bits))
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
            rounded = affine.fake_quantize(grouped, affine.grid(grouped, bits))
            return self._join(rounded, self.input_scale)

    def scales_per_row(self, bits: int) -> int:
        """Scales per output channel at `bits`."""
        return affine.groups_per_row(self.in_features, self._inputs_per_scale(bits))

    @property
    def trains_rounding(self) -> bool:
        """Whether the adapter is a rounding policy, which trains softly."""
        return self.spec.adapter.entry == "rounding" and self.A.numel() > 0

    def learned(self) -> dict[str, Tensor]:
        """What the layer has beside weight and bias, by name: float32 whatever the model's dtype."""
        clipping = {f"clipping.{bits}": value for bits, value in self.clipping.items()}
        return {"A": self.A, "B": self.B, "input_scale": self.input_scale, **clipping}

    def trainable(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What calibration learns: the adapter's factors, and the clipping logits."""
        factors = [self.A, self.B] if self.A.numel() else []
        return factors, list(self.clipping.values())

    def _plan(self, bits: int, harden: bool = True) -> tuple[Tensor, affine.Grid, Tensor | None]:
        """What is rounded, onto which grid, and by which offset: the three places where an adapter can enter."""
        entry = self.spec.adapter.entry if self.A.numel() else "weight"
        master = self._master()
        if entry == "weight" and self.A.numel():
            master = master + self._adapter(bits)
        grouped = self._split(master, bits)
        low, high = torch.sigmoid(self.clipping[str(bits)]).unsqueeze(-1)
        to = affine.grid(grouped, bits, low, high)
        if entry == "weight" or not harden:
            return grouped, to, None
        steps = self._split(self._adapter(bits), bits)
        return grouped, to, steps if entry == "scale" else rounding.hard_offset(grouped, to, steps)

    def _adapter(self, bits: int) -> Tensor:
        columns = self.spec.adapter.columns(self.spec.groups.index(bits), len(self.spec.groups))
        return self.B[:, columns] @ self.A[columns]

    def _derive_detached(self, bits: int) -> Tensor:
        # Kept weights outlive the call, and one made in inference mode could not be used outside it.
        with torch.inference_mode(False), torch.no_grad():
            return self.derive(bits)

    def _master(self) -> Tensor:
        return self.weight.to(torch.float32)

    def _inputs_per_scale(self, bits: int) -> int:
        return self.spec.granularity.inputs_per_scale(bits, self.in_features)

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
            moved = getattr(self, leaf) if not owner else self.clipping[leaf]
            if moved.dtype != value.dtype:
                moved.data = value.to(moved.device)
        if self.residency is not None:
            self.residency.forget(self.path)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.residency is not None:
            self.residency.forget(self.path)

    def extra_repr(self) -> str:
        """Shape, widths and rank, for `print(model)`."""
        widths = ",".join(map(str, self.spec.groups.bits))
        return f"in={self.in_features}, out={self.out_features}, widths={widths}, rank={self.A.shape[0]}"
