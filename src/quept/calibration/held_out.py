"""Judging what was learned on samples that training has not seen, so that a calibration can only gain.

Held-out samples pass through the blocks at full precision, and at each bit-width several ways: as it is kept, the same
on whole ranges of activations, and rounded to nearest all along, which is the baseline. They decide twice.

After each block, at each bit-width: are the learned weights kept or plain rounding, and the learned ranges of
activations or the whole ones? The error of the block's output decides, at the last block that of the predictions.

At the end, at each bit-width: which of the ways predicts best? Errors of blocks add up in ways that no single block
shows. Where it is the baseline, or what beats it does so by chance, that bit-width is plain rounding in every block.

Learned ranges cut off values that are rare, and so are the samples whose predictions that changes: a few held-out ones
may have none. So learned ranges have to win by a `MARGIN` over whole ones, which cut off nothing.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from quept.calibration.block import CalibrationBlock
from quept.calibration.objective import Objective
from quept.calibration.stream import Stream
from quept.calibration.tools import Tools
from quept.config import Activations, Recipe
from quept.storage.manifest import BlockError, Judgement, PredictionError

SHARE = 8  # samples that train for each that is held out ...
TOKENS = 16_384  # ... of which no more are held out than hold this many tokens


def held_out_count(samples: int, tokens_per_sample: int = 1) -> int:
    """Return how many samples to hold out beside `samples` that train; at least one."""
    return max(1, min(samples // SHARE, -(-TOKENS // tokens_per_sample)))


MARGIN = 0.9  # of the error on whole ranges: what that on learned ones has to be below
SURE = 1.64  # standard errors; chance alone has them in one of twenty cases
TINY = 1e-30  # errors are divided by no less


class Choice(NamedTuple):
    """What runs at a bit-width: weights rounded to nearest or learned, whole or learned ranges of activations."""

    rounded: bool
    whole: bool


KEPT, WHOLE, BASELINE = Choice(False, False), Choice(False, True), Choice(True, True)  # of whole models


Errors = Mapping[Choice, float]


class HeldOut:
    """Held-out samples on their way through the blocks."""

    def __init__(self, exact: Stream, rounded: Stream, recipe: Recipe, tools: Tools) -> None:
        """Begin with the first block's inputs, at full precision and behind rounded layers in front of the blocks."""
        self.recipe, self.tools, self._exact = recipe, tools, exact
        ways = (KEPT, WHOLE, BASELINE) if recipe.activations.bits else (KEPT, BASELINE)
        self._streams = {bits: {way: tools.streams.copy(rounded, tools.chunk) for way in ways} for bits in recipe.bits}

    @torch.no_grad()
    def run_exact(self, block: CalibrationBlock) -> None:
        """Pass through a block at full precision, before its weights are rounded to what is stored."""
        with self.tools.workers.undivided():
            self._exact = self._passed(self._exact, block.run)

    def judge(self, block: CalibrationBlock, objective: Objective) -> list[BlockError]:
        """Compare what a frozen block learned with plain rounding; returns what is better at each bit-width.

        `objective` is the error of the block's output.
        """

        def errors(bits: int) -> Errors:
            replica, found = block.replica(), {}
            rounds_inputs = self.recipe.activations.bits_for(bits) is not None
            choices = (KEPT, WHOLE, BASELINE) if rounds_inputs else (KEPT, Choice(rounded=True, whole=False))
            for choice in choices:
                with _running(replica, bits, choice):
                    found[choice] = self._error(
                        objective, self._streams[bits][KEPT], lambda hidden: replica.run(hidden, bits)
                    )
            return found

        by_bits = self.tools.workers.map(errors, self.recipe.bits)
        return decided(block.path, dict(zip(self.recipe.bits, by_bits, strict=True)), self.recipe)

    def advance(self, block: CalibrationBlock) -> None:
        """Pass through a block that has been decided."""

        def run(bits: int) -> None:
            replica, streams = block.replica(), self._streams[bits]
            for way, stream in streams.items():
                with _running(replica, bits, way):
                    streams[way] = self._passed(stream, lambda hidden: replica.run(hidden, bits))

        self.tools.workers.map(run, self.recipe.bits)

    def predictions(self, objective: Objective) -> dict[int, Mapping[Choice, Tensor]]:
        """Return the errors of the predictions behind the last block by bit-width and way to run it, `(samples,)`.

        `objective` is the error of the last block's outputs.
        """

        @torch.no_grad()
        def errors(bits: int) -> Mapping[Choice, Tensor]:
            found: dict[Choice, list[float]] = {way: [] for way in self._streams[bits]}
            for sample in range(self._exact.samples):
                rows = slice(sample, sample + 1)
                error = objective(self._exact.read(rows), rows)
                for way, stream in self._streams[bits].items():
                    found[way].append(error(stream.read(rows)).item())
            return {way: torch.tensor(each, dtype=torch.float64) for way, each in found.items()}

        return dict(zip(self.recipe.bits, self.tools.workers.map(errors, self.recipe.bits), strict=True))

    @torch.no_grad()
    def _error(self, objective: Objective, inputs: Stream, run: Callable[[Tensor], Tensor]) -> float:
        """Return the mean error of what `run` makes of a stream, infinite where it is not finite."""
        total = 0.0
        for rows in inputs.chunks(self.tools.chunk):
            error = objective(self._exact.read(rows), rows)
            total += error(run(inputs.read(rows))).item() * (rows.stop - rows.start)
        return total / inputs.samples if math.isfinite(total) else math.inf  # NaN is less than nothing

    def _passed(self, stream: Stream, run: Callable[[Tensor], Tensor]) -> Stream:
        return self.tools.streams.replace(stream, self.tools.chunk, lambda rows: run(stream.read(rows)))


@contextmanager
def _running(block: CalibrationBlock, bits: int, choice: Choice) -> Iterator[None]:
    """Within: a frozen block runs a choice at `bits`, without gradients; each weight is derived once."""
    with ExitStack() as stack:
        stack.enter_context(block.derived_once())
        if choice.rounded:
            stack.enter_context(block.rounded_to_nearest(bits))
        elif choice.whole:
            stack.enter_context(block.on_whole_ranges())
        yield


def decided(block: str, errors: Mapping[int, Errors], recipe: Recipe) -> list[BlockError]:
    """Return the best choice of the block at path `block` at each bit-width, from the error of every choice.

    Bit-widths of weights that run with one bit-width of activations have the ranges of these in common.
    """
    found = []
    for sharing in _sharing(errors, recipe.activations):
        learned, whole = (sum(_best(errors[bits], each)[0] for bits in sharing) for each in (False, True))
        for bits in sharing:
            _, choice = _best(errors[bits], whole=not learned < MARGIN * whole)
            if recipe.reconstruction.keep == "learned":
                choice = KEPT
            found.append(
                BlockError(
                    block=block,
                    bits=bits,
                    rounding=_rounding(errors[bits]),
                    calibrated=errors[bits][choice],
                    weights="rounding" if choice.rounded else "learned",
                    ranges="whole" if choice.whole else "learned",
                )
            )
    return sorted(found, key=lambda error: -error.bits)


def _best(errors: Errors, whole: bool) -> tuple[float, Choice]:
    """Return the best choice with whole or learned ranges, and its error relative to plain rounding."""
    scale = max(_rounding(errors), TINY)
    possible = [(error / scale, choice) for choice, error in errors.items() if choice.whole is whole]
    return min(possible, default=(math.inf, Choice(rounded=False, whole=whole)))


def _rounding(errors: Errors) -> float:
    return next(error for choice, error in errors.items() if choice.rounded)


def _sharing(bits: Iterable[int], activations: Activations) -> list[list[int]]:
    """Return the bit-widths of weights that run with the same bit-width of activations; alone where there is none."""
    found: dict[int, list[int]] = {}
    for each in bits:
        found.setdefault(activations.bits_for(each) or -each, []).append(each)
    return list(found.values())


def judged(blocks: Iterable[BlockError], errors: Mapping[int, Mapping[Choice, Tensor]], recipe: Recipe) -> Judgement:
    """Return what is kept in the end, from the errors of the predictions: see `HeldOut.predictions`."""
    best = dict.fromkeys(errors, KEPT)
    if recipe.reconstruction.keep == "best":
        best = {bits: _best_way(errors, each) for each in _sharing(errors, recipe.activations) for bits in each}
    kept = []
    for block in blocks:
        way = best[block.bits]
        if way == BASELINE:
            block = block.updated(weights="rounding", ranges="whole", calibrated=block.rounding)
        kept.append(block.updated(ranges="whole") if way == WHOLE else block)
    predictions = (
        PredictionError(bits=bits, rounding=float(each[BASELINE].mean()), calibrated=float(each[best[bits]].mean()))
        for bits, each in errors.items()
    )
    return Judgement(tuple(kept), tuple(predictions))


def _best_way(errors: Mapping[int, Mapping[Choice, Tensor]], sharing: Sequence[int]) -> Choice:
    """Return the way to run whole models at some bit-widths that predicts best."""
    relative = {
        way: torch.cat([errors[bits][way] / errors[bits][BASELINE].mean().clamp_min(TINY) for bits in sharing])
        for way in (KEPT, WHOLE, BASELINE)
        if way in errors[sharing[0]]
    }
    means = {way: float(each.mean()) for way, each in relative.items() if _holds(each, relative[BASELINE])}
    if WHOLE in means and KEPT in means and not means[KEPT] < MARGIN * means[WHOLE]:
        del means[KEPT]
    return min(means, key=lambda way: means[way])


def _holds(errors: Tensor, baseline: Tensor) -> bool:
    """Return whether errors of samples, `(samples,)`, are the baseline's, or below it by more than chance.

    A few samples have most of the error, so the mean over others says little. Ratios have no such outliers: the mean of
    their logarithms has to be below zero by `SURE` standard errors.
    """
    if torch.equal(errors, baseline):
        return True
    logarithms = (errors.clamp_min(TINY) / baseline.clamp_min(TINY)).log()
    spread = float(logarithms.std()) if len(logarithms) > 1 else 0.0
    return float(logarithms.mean()) + SURE * spread / math.sqrt(len(logarithms)) < 0
