"""The optimizer of a block: each rule moves the parameters of the methods that ask for it."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

REACH = 0.5  # quantization steps: an offset goes to the neighbouring code at most, which is what a mask can keep
TINY = 1e-18  # keeps a weight without a gradient where it is, and one whose square is no float32 near it


@dataclass(frozen=True)
class OptimizerRule:
    """A rule by which parameters move: an optimizer, and the course of its learning rate.

    `make` is given parameter groups as `torch.optim` has them. `schedule` is given the step, the number of steps, and
    the final learning rate as a share of the first; it returns the share now.
    """

    name: str
    make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    schedule: Callable[[int, int, float], float]


class RoundingOptimizer(torch.optim.Optimizer):
    """Moves rounding offsets against their gradient, divided by its root mean square, within `REACH` of zero.

    The first step is the gradient's sign, as in SignRound (arXiv 2309.05516); from then on weights whose gradient
    changes its sign from batch to batch move less. This is Adam without momentum, with less to remember.
    """

    DECAY = 0.99  # of the mean square, per step

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every offset that has a gradient by one step."""
        for group in self.param_groups:
            for offset in group["params"]:
                if offset.grad is not None:
                    self._move(offset, offset.grad, group["lr"])

    def _move(self, offset: Tensor, gradient: Tensor, rate: float) -> None:
        state = self.state[offset]
        if not state:
            state.update(step=0, mean_square=torch.zeros_like(offset))
        state["step"] += 1
        weight = 1 - self.DECAY ** state["step"]  # all that the mean has been made of so far
        mean_square: Tensor = state["mean_square"]
        mean_square.mul_(self.DECAY).addcmul_(gradient, gradient, value=1 - self.DECAY)
        scale = (mean_square / weight).sqrt_().add_(TINY)
        offset.addcdiv_(gradient, scale, value=-rate).clamp_(-REACH, REACH)


def _cosine(step: int, steps: int, last: float) -> float:
    return last + (1 - last) * (1 + math.cos(math.pi * step / steps)) / 2


def _linear(step: int, steps: int, last: float) -> float:
    return 1 - step / steps


ADAM = OptimizerRule("adam", lambda groups: torch.optim.Adam(groups, fused=True), _cosine)
NORMALIZED_DESCENT = OptimizerRule("normalized descent", RoundingOptimizer, _linear)


class Group(Protocol):
    """Parameters that a rule moves at a learning rate."""

    @property
    def rule(self) -> OptimizerRule:
        """The rule."""

    @property
    def learning_rate(self) -> float:
        """The first step's."""

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors."""


class BlockOptimizer:
    """Moves parameter groups over `steps` steps; `last` is the final learning rate as a share of the first.

    A parameter without a gradient stays where it is: bit-widths that were not drawn in a step do not move.
    """

    def __init__(self, groups: Iterable[Group], steps: int, last: float) -> None:
        by_rule: dict[str, tuple[OptimizerRule, dict[float, list[Tensor]]]] = {}
        for group in filter(lambda each: each.parameters, groups):
            _, by_rate = by_rule.setdefault(group.rule.name, (group.rule, {}))
            by_rate.setdefault(group.learning_rate, []).extend(group.parameters)
        self.trained: list[Tensor] = []
        self.optimizers: list[torch.optim.Optimizer] = []
        self.schedules: list[torch.optim.lr_scheduler.LRScheduler] = []
        for rule, by_rate in by_rule.values():
            optimizer = rule.make([{"params": parameters, "lr": rate} for rate, parameters in by_rate.items()])
            self.trained += [parameter for parameters in by_rate.values() for parameter in parameters]
            self.optimizers.append(optimizer)
            self.schedules.append(torch.optim.lr_scheduler.LambdaLR(optimizer, _course(rule, steps, last)))

    @torch.no_grad()
    def step(self, gradients: Iterable[Sequence[Tensor | None]]) -> None:
        """Move along the sum of gradients, each of all that is `trained`, added in the order that they come in."""
        for each in gradients:
            for parameter, gradient in zip(self.trained, each, strict=True):
                if gradient is not None:
                    parameter.grad = gradient.contiguous() if parameter.grad is None else parameter.grad + gradient
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def _course(rule: OptimizerRule, steps: int, last: float) -> Callable[[int], float]:
    return lambda step: rule.schedule(step, steps, last)
