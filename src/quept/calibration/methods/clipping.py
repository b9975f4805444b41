"""Learned clipping: how much of each group's minimum and maximum its range keeps (paper, weight quantizer)."""

import itertools
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from quept.calibration.methods.base import Draft, Method, ParameterGroup, Start, Weight, straight_through
from quept.calibration.optimizer import ADAM
from quept.config import Reconstruction
from quept.formats import eight_bit
from quept.formats.derivation import derive
from quept.layers.weight import INITIAL_CLIP_LOGIT, FrozenWeight
from quept.numerics import affine, clipping

UNCLIPPED = 20.0  # sigmoid(20) is 1 in float32
NUDGES = 8  # stored clip ratios from 1 down, that are tried for each end of a range


class Clipping(Method):
    """Logits of the clip ratios, `(2, out, groups_b)` float32 for each bit-width but the stored master's."""

    def __init__(self, weight: Weight) -> None:
        super().__init__(weight)
        self.logits = {
            bits: self.learnable(2, weight.out_features, weight.scales_per_row(bits), value=INITIAL_CLIP_LOGIT)
            for bits in weight.spec.store.without_master(weight.spec.groups.bits)
        }

    @torch.no_grad()
    def init(self, start: Start) -> None:
        """Start at a logit, or at the ratios that round best; bit-widths that never train keep their whole range.

        Of a stored master they may lose a little of it; see `_nudge`.
        """
        for bits, logits in self.logits.items():
            if bits in start.idle:
                logits.fill_(UNCLIPPED)
                if start.rows is not None and self.weight.spec.store.master_bits is not None:
                    self._nudge(bits, logits, start.rows)
            elif start.clip_init == "search":
                assert start.importance is not None
                logits.copy_(self._search(bits, start.importance))
            else:
                logits.fill_(float(start.clip_init))

    def parameters(self, settings: Reconstruction, draws: Mapping[int, float]) -> Iterable[ParameterGroup]:
        """Return all logits."""
        yield ParameterGroup(ADAM, settings.clipping_learning_rate, list(self.logits.values()))

    def apply(self, draft: Draft) -> None:
        """Clip with the ratios that will be stored."""
        draft.clip_ratios = self.ratios(draft.bits)

    def freeze(self, frozen: FrozenWeight) -> None:
        """Keep logits in floats, or ratios in the bits of a store."""
        for bits, logits in self.logits.items():
            if frozen.store is None:
                frozen.clipping[str(bits)].copy_(logits)
            else:
                frozen.store.round_clip_ratios(bits, torch.sigmoid(logits))

    def state(self) -> Iterable[Tensor]:
        """Return all logits."""
        return self.logits.values()

    def ratios(self, bits: int) -> Tensor:
        """Return the clip ratios, `(2, out, groups_b)`, as they will be stored; differentiable."""
        ratios = torch.sigmoid(self.logits[bits])
        if self.weight.spec.store.master_bits is None:
            return ratios
        stored_bits = self.weight.spec.clip_ratio_bits(bits, self.weight.in_features)
        codes = eight_bit.round_clip_ratios(ratios.detach(), stored_bits)
        return straight_through(ratios, eight_bit.clip_ratios(codes, stored_bits))

    def _nudge(self, bits: int, logits: Tensor, rows: Tensor) -> None:
        """Take the ratios next to whole ones with which each row's output error on inputs `(tokens, in)` is least.

        A slightly narrower range rounds every weight anew. Of a few dozen roundings the best has much less error than
        one, where few directions of the inputs matter; that makes up for rounding a second time, behind the master's.
        """
        stored_bits = self.weight.spec.clip_ratio_bits(bits, self.weight.in_features)
        if self.weight.scales_per_row(bits) > 1 or stored_bits < 8:
            return  # such ratios are too coarse
        moments = rows.float().T @ rows.float() / len(rows)
        inputs, exact, steps = self.weight.inputs_per_scale(bits), self.weight.exact.float(), 2**stored_bits
        least = torch.full((self.weight.out_features,), math.inf, device=exact.device)
        for ends in itertools.product(range(NUDGES), repeat=2):
            codes = exact.new_tensor([steps - lost for lost in ends])
            ratios = (codes / steps).view(2, 1, 1).expand(2, len(least), 1)
            derived = derive(
                self.weight.float_master(), bits, inputs, clip_ratios=ratios, symmetric=self.weight.is_symmetric(bits)
            )
            error = affine.join_groups(derived.dequantized(), self.weight.in_features) - exact
            found = ((error @ moments) * error).sum(1)
            better = found < least
            least = torch.where(better, found, least)
            logits[:, better] = torch.logit(ratios[:, better], eps=1e-6)

    def _search(self, bits: int, importance: Tensor) -> Tensor:
        """Return the logits, `(2, out, groups_b)`, of the clip ratios that round the master best."""
        inputs = self.weight.inputs_per_scale(bits)
        grouped = affine.split_groups(self.weight.float_master(), inputs)
        weights = affine.split_groups(importance.unsqueeze(0), inputs)
        ratio = clipping.best_clip_ratio(grouped, bits, weights, self.weight.is_symmetric(bits))
        # A whole range has no logit: it starts half a code short, or at the method's start if that is wider.
        nearly_whole = max(INITIAL_CLIP_LOGIT, math.log(2 * (2**bits - 1) - 1))
        return torch.logit(ratio.squeeze(-1), eps=1e-6).clamp_max(nearly_whole)
