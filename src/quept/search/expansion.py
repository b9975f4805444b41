"""The effect of every change of a plan, to second order, from one backward pass.

A linear's other bit-width changes its output, and the gradient says what that does to the predictions. The divergence
from full precision moves by the slope along the change, and by half of the change squared in the metric of the Fisher
information: the mean square, over outcomes drawn from the predictions, of gradient times change. Between two linears it
is the mean product. That is negative where one makes up for what the other does wrong, as linears do that were
calibrated one behind the other at the same bit-width.

Gradient times change is taken token by token, which leaves out how one token's change meets another's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quept.config import Precision
from quept.layers import ElasticLinear
from quept.numerics.divergence import kl_terms
from quept.precision import PrecisionLike, at_precision
from quept.search.sensitivity import Progress, choices_of
from quept.search.target import SearchTarget

SEED = 0  # of the outcomes that are drawn

Column = tuple[str, str]  # a linear's path and a bit-width


@dataclass(frozen=True)
class Expansion:
    """The divergence around a precision, in nats per row: of its own, and of changing linears to other bit-widths.

    Attributes:
        columns: each linear at each bit-width that it may take.
        divergence: the divergence as it is.
        slopes: the first-order change for each column, `(columns,)`; zero around full precision.
        products: the second-order change for each pair of columns, `(columns, columns)`; a change of several linears
            adds the sum over all their pairs, each twice, and each column with itself once.
    """

    columns: tuple[Column, ...]
    divergence: float
    slopes: NDArray[np.float64]
    products: NDArray[np.float64]

    def errors(self) -> dict[str, dict[str, float]]:
        """Return the change that each linear alone makes, by path and bit-width."""
        found: dict[str, dict[str, float]] = {}
        alone = self.slopes + np.diagonal(self.products)
        for (path, bits), error in zip(self.columns, alone.tolist(), strict=True):
            found.setdefault(path, {})[bits] = error
        return found


def expand(target: SearchTarget, around: PrecisionLike = None, *, progress: Progress | None = None) -> Expansion:
    """Return the second-order expansion of a model's divergence around a precision; see `Expansion`.

    One forward pass and one backward pass, two where the precision is not full, and each linear once more per
    bit-width. `progress` is told batches done and in total.
    """
    linears = {
        path: part for _, parts in target.parts() for path, part in parts.items() if isinstance(part, ElasticLinear)
    }
    choices = {path: choices_of(part) for path, part in linears.items()}
    columns = tuple((path, str(bits)) for path, each in choices.items() for bits in each)
    slopes = torch.zeros(len(columns), dtype=torch.float64)
    products = torch.zeros(len(columns), len(columns), dtype=torch.float64)
    generator, rows, divergence = torch.Generator().manual_seed(SEED), 0, 0.0
    for done, batch in enumerate(target.inputs, start=1):
        with torch.no_grad(), at_precision(target.model, None):
            expected = target.logits(batch).double().log_softmax(-1)
        effects = _Effects(choices)
        with at_precision(target.model, None), at_precision(target.model, around), ExitStack() as stack:
            for part in linears.values():
                stack.enter_context(_watched(part, effects))
            with torch.enable_grad():
                logits = target.logits(batch)
            effects.rows = len(logits)
            given = logits.detach().double().log_softmax(-1)
            if around is not None:
                divergence += kl_terms(expected, given).sum().item()
                logits.backward((given.exp() - expected.exp()).to(logits.dtype), retain_graph=True)  # type: ignore[no-untyped-call]
                slopes += effects.taken().sum(0)
            drawn = torch.multinomial(given.exp().cpu(), 1, generator=generator).to(given.device)
            logits.backward((given.exp().scatter_add_(1, drawn, -torch.ones_like(given[:, :1]))).to(logits.dtype))  # type: ignore[no-untyped-call]
            effect = effects.taken()
        products += effect.T @ effect
        rows += len(given)
        if progress is not None:
            progress("gradients", done, len(target.inputs))
    return Expansion(columns, divergence / rows, (slopes / rows).numpy(), (products / rows / 2).numpy())


class _Effects:
    """Gradient times change of the output, row by row, for every linear and bit-width of one backward pass."""

    def __init__(self, choices: Mapping[str, Sequence[Precision]]) -> None:
        self.choices = choices
        self.rows = 1  # of predictions: a row may be of many tokens, whose effects on it add up
        self._found: dict[str, Tensor] = {}

    @torch.no_grad()
    def see(self, layer: ElasticLinear, hidden: Tensor, output: Tensor, slope: Tensor) -> None:
        """Note a linear's effects: of its inputs, `(..., in)`, its output, `(..., out)`, and the gradient there."""
        found = []
        for bits in self.choices[layer.path]:
            with at_precision(layer, {layer.path: bits}):
                change = layer.forward(hidden) - output
            found.append((change.float() * slope.float()).sum(-1).reshape(self.rows, -1).sum(-1))
        self._found[layer.path] = torch.stack(found, dim=1).cpu()

    def taken(self) -> Tensor:
        """Return all effects, `(rows, columns)`, float64; what is noted next is of another backward pass."""
        effects = torch.cat([self._found[path] for path in self.choices], dim=1)
        self._found = {}
        return effects.double()


@contextmanager
def _watched(layer: ElasticLinear, effects: _Effects) -> Iterator[None]:
    """Within: backward passes through the layer count. Its own forward pass within `effects` does not: no gradients."""

    def observe(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        hidden, before = args[0].detach(), output.detach()
        if not output.requires_grad:
            output.requires_grad_()  # nothing in front of the first linears has gradients
        see: Callable[[Tensor], None] = lambda slope: effects.see(layer, hidden, before, slope)  # noqa: E731
        output.register_hook(see)  # type: ignore[no-untyped-call]

    hook = layer.register_forward_hook(observe)
    try:
        yield
    finally:
        hook.remove()
