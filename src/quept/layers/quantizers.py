"""Quantizers of one tensor of activations, on a range of each token's own or on a learned one."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quept.config import Activations
from quept.layers.keep_dtype import KeepDtype
from quept.numerics import activations, affine, logarithmic
from quept.numerics.activations import Sample

CLIPPING_START = 4.0  # sigmoid(4) = 0.982: the range starts almost whole
NARROWEST = 1e-6  # of the wider side of a range: what the other side has at least, so that it has a logarithm
OBSERVED = 1 << 12  # values kept of each tensor that is seen


class TokenGrid(NamedTuple):
    """The share of each token's range that is kept, and the highest code, both scalars."""

    clip_ratio: Tensor
    highest: Tensor


class TensorGrid(NamedTuple):
    """Scale, zero point and highest code of a whole tensor, all scalars."""

    scale: Tensor
    zero_point: Tensor
    highest: Tensor


class LogGrid(NamedTuple):
    """Scale, levels to a halving, and highest code of a logarithmic grid, all scalars."""

    scale: Tensor
    density: Tensor
    highest: Tensor


class Quantizer(KeepDtype):
    """Rounds a tensor at any of the bit-widths of `spec`; what it learns is one small parameter per bit-width.

    `override` is the grid that is used whatever the bit-width, while it is not None. At the bit-widths in `whole_bits`
    ranges are the whole ones, whatever was learned.
    """

    parameters_name = ""  # under which the parameters are kept, by bit-width

    def __init__(self, spec: Activations) -> None:
        super().__init__()
        self.spec = spec
        self.override: Any = None
        self.whole_bits: frozenset[int] = frozenset()

    def forward(self, values: Tensor, bits: int | None, unclipped: bool = False) -> Tensor:
        """Return `values` rounded to `bits`, with straight-through gradients; None leaves them as they are.

        With `unclipped`, ranges are the whole ones, whatever was learned: the baseline.
        """
        grid = self.override
        if grid is None:
            if bits is None:
                return values
            grid = self.min_max_grid(bits) if unclipped else self.kept_grid(bits)
        return self.round(values, grid)

    def kept_grid(self, bits: int) -> Any:
        """Return the grid that a calibration decided for: the learned one, or the one without clipping."""
        return self.min_max_grid(bits) if bits in self.whole_bits else self.grid(bits)

    def grid(self, bits: int) -> Any:
        """Return the grid at a bit-width; differentiable in what is learned."""
        raise NotImplementedError

    def min_max_grid(self, bits: int) -> Any:
        """Return the grid without clipping: the baseline."""
        raise NotImplementedError

    def round(self, values: Tensor, grid: Any) -> Tensor:
        """`values` rounded on a grid."""
        raise NotImplementedError

    def start_observing(self) -> None:
        """From now on values count for where ranges start, if they have one start."""

    def observe(self, values: Tensor) -> None:
        """Let values count."""

    def init_range(self, start: float | str, rows: Tensor | None = None, importance: Tensor | None = None) -> None:
        """Set where the ranges of all bit-widths start.

        `rows` are values, `(tokens, in)`, and `importance`, `(in,)`, weighs their channels: the squared norms of the
        columns that multiply them make a weighted squared error an estimate of the output's. Without rows, what was
        seen counts.
        """
        raise NotImplementedError

    def learned(self) -> dict[str, Tensor]:
        """Return the tensors that calibration finds, by name."""
        return {f"{self.parameters_name}.{bits}": value for bits, value in self.trained().items()}

    def trained(self) -> nn.ParameterDict:
        """Return the parameters that train, by bit-width."""
        found = getattr(self, self.parameters_name)
        assert isinstance(found, nn.ParameterDict)
        return found

    def extra_repr(self) -> str:
        """Bit-widths, for `print(model)`."""
        return f"bits={','.join(map(str, self.spec.bits)) or 'none'}"


class TokenQuantizer(Quantizer):
    """Symmetric, on a range that every token brings along.

    Parameters: `clipping.<bits>`, the logit of the share of every token's range that is kept, `(1,)`, float32.
    """

    parameters_name = "clipping"

    def __init__(self, spec: Activations, device: torch.device) -> None:
        super().__init__(spec)
        self.clipping = _parameters(spec, torch.full((1,), CLIPPING_START, dtype=torch.float32, device=device))

    def grid(self, bits: int) -> TokenGrid:
        """Return the learned share of each token's range."""
        logit = self.clipping[str(bits)]
        return TokenGrid(torch.sigmoid(logit), logit.new_tensor(float(activations.highest_code(bits))))

    def min_max_grid(self, bits: int) -> TokenGrid:
        """Return all of each token's range."""
        return TokenGrid(torch.ones_like(self.clipping[str(bits)]), self.grid(bits).highest)

    def round(self, values: Tensor, grid: TokenGrid) -> Tensor:
        """`values`, `(..., in)`, rounded per token."""
        return activations.fake_quantize(values, grid.clip_ratio, grid.highest, self.spec.group_size)

    @torch.no_grad()
    def init_range(self, start: float | str, rows: Tensor | None = None, importance: Tensor | None = None) -> None:
        """Start at a logit, or with "search" at the share that rounds the rows best; see `best_clip_ratio`."""
        for bits in self.spec.bits:
            logit = self.clipping[str(bits)]
            if start != "search":
                logit.fill_(float(start))
                continue
            assert rows is not None
            assert importance is not None
            clip_ratio = activations.best_clip_ratio(rows, bits, importance, self.spec.group_size)
            logit.fill_(torch.logit(torch.tensor(clip_ratio, dtype=torch.float32), eps=1e-6).clamp_max(CLIPPING_START))


class ObservedQuantizer(Quantizer):
    """One whose ranges stay, so that they start from values that were seen.

    `extremes` are the lowest and highest of these, `(2,)`.
    """

    extremes: Tensor

    def __init__(self, spec: Activations, device: torch.device) -> None:
        super().__init__(spec)
        self.register_buffer("extremes", torch.zeros(2, dtype=torch.float32, device=device))
        self._observed: list[Sample] | None = None

    def start_observing(self) -> None:
        """From now on values count, until ranges are placed."""
        self._observed = []
        self.extremes.zero_()

    @torch.no_grad()
    def observe(self, values: Tensor) -> None:
        """Let values count for the extremes, and a part of them for the sample."""
        if self._observed is None:
            return
        low, high = values.aminmax()
        self.extremes[0] = torch.minimum(self.extremes[0], low)
        self.extremes[1] = torch.maximum(self.extremes[1], high)
        self._observed.append(Sample.of(values.detach(), count=OBSERVED))

    def sample(self, rows: Tensor | None, importance: Tensor | None) -> Sample:
        """Return minimum and maximum of rows, or of what was observed."""
        if rows is not None:
            self.extremes.copy_(torch.stack(rows.aminmax()).float())
            return Sample.of(rows, importance)
        assert self._observed
        observing, self._observed = Sample.joined(self._observed), None
        return observing

    def learned(self) -> dict[str, Tensor]:
        """Return the ranges, and the minimum and maximum."""
        return {**super().learned(), "extremes": self.extremes}


class TensorQuantizer(ObservedQuantizer):
    """Asymmetric, on one range for all values of a tensor.

    Parameters: `extent.<bits>`, the logarithms of how far the range goes below and above zero, `(2,)`, float32, so that
    a learning rate means the same share of every range.
    """

    parameters_name = "extent"

    def __init__(self, spec: Activations, device: torch.device) -> None:
        super().__init__(spec, device)
        self.extent = _parameters(spec, torch.zeros(2, dtype=torch.float32, device=device))

    def grid(self, bits: int) -> TensorGrid:
        """On the learned range."""
        below, above = self.extent[str(bits)].exp()
        return _tensor_grid(below, above, bits)

    def min_max_grid(self, bits: int) -> TensorGrid:
        """From the lowest value seen to the highest."""
        return _tensor_grid(-self.extremes[0], self.extremes[1], bits)

    def round(self, values: Tensor, grid: TensorGrid) -> Tensor:
        """`values` of any shape; the result has their dtype."""
        return activations.fake_quantize_tensor(values, *grid)

    @torch.no_grad()
    def init_range(self, start: float | str, rows: Tensor | None = None, importance: Tensor | None = None) -> None:
        """Start at the extremes, or at the percentiles or the shares of them that round best."""
        sample = self.sample(rows, importance)
        for bits in self.spec.bits:
            below, above = activations.best_range(sample, bits, self.extremes, str(start))
            least = NARROWEST * max(below, above, 1e-30)
            self.extent[str(bits)].copy_(
                torch.tensor([max(below, least), max(above, least)], dtype=torch.float32).log()
            )


class LogQuantizer(ObservedQuantizer):
    """Logarithmic, for values from zero to one.

    Parameters: `levels.<bits>`, the logarithms of scale and density, `(2,)`, float32; see `quept.numerics.logarithmic`.
    """

    parameters_name = "levels"

    def __init__(self, spec: Activations, device: torch.device) -> None:
        super().__init__(spec, device)
        self.levels = _parameters(spec, torch.zeros(2, dtype=torch.float32, device=device))

    def grid(self, bits: int) -> LogGrid:
        """Return the learned grid."""
        scale, density = self.levels[str(bits)].exp()
        return LogGrid(scale, density, scale.new_tensor(float(2**bits - 1)))

    def min_max_grid(self, bits: int) -> TensorGrid:
        """Uniform, up to the highest value seen: the baseline is no logarithm."""
        return _tensor_grid(-self.extremes[0], self.extremes[1], bits)

    def round(self, values: Tensor, grid: LogGrid | TensorGrid) -> Tensor:
        """`values` of any shape; the result has their dtype."""
        if isinstance(grid, TensorGrid):
            return activations.fake_quantize_tensor(values, *grid)
        return logarithmic.fake_quantize(values, *grid)

    @torch.no_grad()
    def init_range(self, start: float | str, rows: Tensor | None = None, importance: Tensor | None = None) -> None:
        """Start at the scale and density that round best, whatever `start` says."""
        sample = self.sample(rows, importance)
        for bits in self.spec.bits:
            self.levels[str(bits)].copy_(torch.tensor(logarithmic.best_grid(sample, bits), dtype=torch.float32).log())


def quantizer(spec: Activations, device: torch.device) -> Quantizer:
    """Return the quantizer of one tensor, as the settings say."""
    return TensorQuantizer(spec, device) if spec.range == "tensor" else TokenQuantizer(spec, device)


def _parameters(spec: Activations, start: Tensor) -> nn.ParameterDict:
    return nn.ParameterDict({str(bits): nn.Parameter(start.clone(), requires_grad=False) for bits in spec.bits})


def _tensor_grid(below: Tensor, above: Tensor, bits: int) -> TensorGrid:
    highest = below.new_tensor(float(2**bits - 1))
    scale = ((below + above) / highest).clamp_min(activations.TINY)
    return TensorGrid(scale, affine.round_straight_through(below / scale), highest)
