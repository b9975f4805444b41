"""What moves what a block learns: Adam the adapters and the clipping, normalised descent the rounding."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from quept.config import Reconstruction
from quept.layers import ElasticLinear, Quantizer

REACH = 0.5  # quantization steps: an offset goes to the neighbouring code at most, which is what a plane can keep
TRAVEL = 1.5  # quantization steps, if every draw were as long as the first; they shrink, so half of it at most
FASTEST = 1 / 50  # of a quantization step: a few steps that are longer would flip weights at random
TINY = 1e-18  # keeps a weight without a gradient where it is, and one whose square is no float32 near it


class BlockOptimizer:
    """The optimizers of one block over `steps` steps, of which each width is drawn in `draws`, on average.

    A parameter without a gradient stays where it is: widths that were not drawn in a step do not move.
    """

    def __init__(
        self,
        layers: Iterable[ElasticLinear],
        quantizers: Iterable[Quantizer],
        settings: Reconstruction,
        steps: int,
        draws: Mapping[int, float],
    ) -> None:
        layers = list(layers)
        adapters = [factor for layer in layers for factor in layer.adapter_factors()]
        clipping = [logits for layer in layers for logits in layer.clipping.values()]
        offsets: dict[int, list[Tensor]] = {}
        for layer in layers:
            for bits, offset in layer.learn_rounding().items():
                offsets.setdefault(bits, []).append(offset)
        activations = [parameter for each in quantizers for parameter in each.trained().values()]
        for parameter in adapters + clipping + activations:
            parameter.requires_grad_(True)
        self.trained: list[Tensor] = [
            *adapters,
            *clipping,
            *activations,
            *(o for each in offsets.values() for o in each),
        ]
        last = settings.final_learning_rate

        def cosine(step: int) -> float:
            return last + (1 - last) * (1 + math.cos(math.pi * step / steps)) / 2

        def linear(step: int) -> float:
            return 1 - step / steps

        self.optimizers: list[torch.optim.Optimizer] = []
        self.schedules: list[torch.optim.lr_scheduler.LRScheduler] = []
        moved = [{"params": clipping, "lr": settings.clipping_learning_rate}]
        if adapters:
            moved.append({"params": adapters, "lr": settings.adapter_learning_rate})
        if activations:
            moved.append({"params": activations, "lr": settings.activation_learning_rate})
        self._add(torch.optim.Adam(moved, fused=True), cosine)
        if offsets:
            given = settings.rounding_learning_rate
            # A width that is never drawn has no gradient, whatever its rate.
            auto = {bits: min(FASTEST, TRAVEL / max(1.0, draws[bits])) for bits in offsets}
            moved = [
                {"params": parameters, "lr": auto[bits] if given == "auto" else given}
                for bits, parameters in offsets.items()
            ]
            self._add(RoundingOptimizer(moved), linear)

    def _add(self, optimizer: torch.optim.Optimizer, course: Callable[[int], float]) -> None:
        self.optimizers.append(optimizer)
        self.schedules.append(torch.optim.lr_scheduler.LambdaLR(optimizer, course))

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


class RoundingOptimizer(torch.optim.Optimizer):
    """Rounding offsets move against their gradient, divided by its root mean square, within `REACH` of zero.

    The first step is the gradient's sign, as in SignRound (arXiv 2309.05516); from then on weights whose gradient
    changes its sign from batch to batch move less. This is Adam without momentum, with less to remember.
    """

    DECAY = 0.99  # of the mean square, per step

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every offset that has a gradient."""
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
