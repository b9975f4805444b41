"""Sensitivities from one backward pass: squared gradients times squared changes.

To second order, a change of the weights moves the predictions by half of it, squared, in the metric of the Fisher
information, whose diagonal is the mean square of the gradients of log probabilities of outcomes that are drawn from the
model's own predictions. Weights are taken for independent of one another, which is what makes this cheap.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from quept.nn import ElasticLinear
from quept.numerics.activations import fake_quantize
from quept.plan import Widths
from quept.precision import at_precision
from quept.search.sensitivity import Measured, Progress, widths_of
from quept.search.subject import Subject
from quept.spec import Activations

SEED = 0  # of the outcomes that are drawn


@dataclass
class _Watched:
    """A linear, and what its gradients add up to.

    `squares`, `(out, in)`: of each sample's gradient, summed over samples. `inputs`: by width of the inputs, half the
    squared effect of rounding them.
    """

    layer: ElasticLinear
    squares: Tensor
    inputs: dict[int, float] = field(default_factory=dict)

    def see(self, hidden: Tensor, slope: Tensor) -> None:
        """Count a batch: what the weight multiplied, `(samples, ..., in)`, and the output's gradient, `(..., out)`."""
        samples = hidden.shape[0]
        hidden, slope = (each.detach().float().reshape(samples, -1, each.shape[-1]) for each in (hidden, slope))
        self.squares += torch.einsum("sto,sti->soi", slope, hidden).square_().sum(0)
        if self._widths:
            assert self.layer.input is not None
            back = slope @ self.layer.weight.float()
            for bits in self._widths:
                grid = self.layer.input.grid(bits)
                rounded = fake_quantize(hidden, grid.share, grid.highest, self.layer.input.spec.group_size)
                change = rounded - hidden
                self.inputs[bits] = self.inputs.get(bits, 0.0) + 0.5 * (back * change).square().sum().item()

    @torch.no_grad()
    def error(self, widths: Widths) -> float:
        """The divergence at a width, summed over rows."""
        with at_precision(self.layer, {self.layer.path: widths}):
            bits, activation_bits = self.layer.bits, self.layer.activation_bits
        total = 0.0 if activation_bits is None else self.inputs[activation_bits]
        if bits is not None:
            change = self.layer.derive(bits).float() - self.layer.weight.float()
            total += 0.5 * (self.squares * change.square()).sum(dtype=torch.float64).item()
        return total

    @property
    def _widths(self) -> Sequence[int]:
        return (Activations() if self.layer.input is None else self.layer.input.spec).bits


def measure_by_gradient(subject: Subject, *, progress: Progress | None = None) -> Measured:
    """What `measure` measures of linears around full precision, estimated from one forward and backward pass.

    `progress` is told passes done and in total.
    """
    watched = {
        path: _Watched(part, torch.zeros_like(part.weight, dtype=torch.float32))
        for _, parts in subject.parts()
        for path, part in parts.items()
        if isinstance(part, ElasticLinear)
    }
    generator = torch.Generator().manual_seed(SEED)
    rows = 0
    with at_precision(subject.model, None), ExitStack() as stack:
        for each in watched.values():
            stack.enter_context(_watching(each))
        for done, batch in enumerate(subject.inputs, start=1):
            with torch.enable_grad():
                logits = subject.logits(batch).float()
                drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator).squeeze(1)
                F.cross_entropy(logits, drawn.to(logits.device), reduction="sum").backward()  # type: ignore[no-untyped-call]
            rows += len(drawn)
            if progress is not None:
                progress("gradients", done, len(subject.inputs))
    parts = {
        path: {str(width): each.error(width) / rows for width in widths_of(each.layer)}
        for path, each in watched.items()
    }
    return Measured(0.0, parts)


@contextmanager
def _watching(watched: _Watched) -> Iterator[None]:
    """Within: every forward pass with a backward pass behind it counts."""

    def observe(layer: ElasticLinear, args: tuple[Tensor, ...], output: Tensor) -> None:
        hidden = args[0] if layer.input is None else layer.input.transformed(args[0])
        if not output.requires_grad:
            output.requires_grad_()  # nothing in front of the first linears has gradients
        hidden = hidden.detach()
        output.register_hook(lambda slope: watched.see(hidden, slope))  # type: ignore[no-untyped-call]

    hook = watched.layer.register_forward_hook(observe)
    try:
        yield
    finally:
        hook.remove()
