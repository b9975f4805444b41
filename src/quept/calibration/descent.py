"""What moves what a block learns: Adam the adapters and the clipping, sign descent the rounding."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from quept.nn import ElasticLinear
from quept.spec import Reconstruction

FASTEST = 1 / 50  # of a quantization step: a few steps that are longer would flip weights at random


class Descent:
    """The optimizers of one block over `steps` steps, of which each width is drawn in `draws`, on average.

    A parameter without a gradient stays where it is: widths that were not drawn in a step do not move.
    """

    def __init__(
        self, layers: Iterable[ElasticLinear], settings: Reconstruction, steps: int, draws: Mapping[int, float]
    ) -> None:
        layers = list(layers)
        adapters = [factor for layer in layers for factor in layer.adapter_factors()]
        clipping = [logits for layer in layers for logits in layer.clipping.values()]
        offsets: dict[int, list[Tensor]] = {}
        for layer in layers:
            for bits, offset in layer.learn_rounding().items():
                offsets.setdefault(bits, []).append(offset)
        for parameter in adapters + clipping:
            parameter.requires_grad_(True)
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
        self._add(torch.optim.Adam(moved, fused=True), cosine)
        if offsets:
            given = settings.rounding_learning_rate
            # A width that is never drawn has no gradient, whatever its rate.
            rates = {bits: min(FASTEST, 1 / max(1.0, draws[bits])) if given == "auto" else given for bits in offsets}
            signed = [{"params": parameters, "lr": rates[bits]} for bits, parameters in offsets.items()]
            self._add(SignDescent(signed), linear)

    def _add(self, optimizer: torch.optim.Optimizer, course: Callable[[int], float]) -> None:
        self.optimizers.append(optimizer)
        self.schedules.append(torch.optim.lr_scheduler.LambdaLR(optimizer, course))

    def step(self) -> None:
        """Move along the gradients gathered since the last step, and drop them."""
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


class SignDescent(torch.optim.Optimizer):
    """Rounding offsets move by the learning rate against the sign of their gradient (SignRound, arXiv 2309.05516)."""

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step, within half a quantization step of zero; gradients are overwritten by their signs."""
        for group in self.param_groups:
            for offset in group["params"]:
                if offset.grad is not None:
                    offset.add_(offset.grad.sign_(), alpha=-group["lr"]).clamp_(-0.5, 0.5)
