"""A language model's perplexity and size at each precision, compared with full precision and plain rounding."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from quept.config import Precision, PrecisionPlan
from quept.errors import InvalidInput
from quept.evaluation.candidates import Candidate, candidates
from quept.evaluation.perplexity import perplexity
from quept.layers.size import current_bytes, full_precision_bytes, mean_bits
from quept.numerics.divergence import total_kl
from quept.precision import at_precision, master_name, rounded_to_nearest

KEPT_LOGITS = 1 << 30  # bytes of the original's logits that are kept from one precision to the next


@dataclass(frozen=True)
class PrecisionResult:
    """One precision: perplexity as calibrated and rounded to nearest, and the model's packed bytes at it.

    `bits` is the bit-width of the weights, for a plan the mean over them. `precision` is the precision as it is
    written, as in `w4a8`, or the plan's name. `kl` and `baseline_kl` are the divergences of the predictions from the
    original model's, in nats per token; None without an original.
    """

    bits: float
    precision: str
    perplexity: float | None
    baseline: float | None
    bytes: int
    kl: float | None = None
    baseline_kl: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """A language model at several precisions on one text; lower is better.

    `full_precision` is measured without a bit-width; `reference` names it, since a stored master is not quite it.
    `full_precision_bytes` is the size of the model before it was calibrated. `original` is that model's perplexity and
    `full_precision_kl` the divergence from it, None where it was not given.
    """

    metric: str
    reference: str
    full_precision: float
    full_precision_bytes: int
    tokens: int
    sequence_length: int
    stride: int
    results: tuple[PrecisionResult, ...]
    full_precision_kl: float | None = None
    original: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary for `json.dump`."""
        return asdict(self)


def evaluate_precisions(
    model: Any,
    tokens: Tensor,
    precisions: Sequence[int | str | Precision],
    *,
    plans: Mapping[str, PrecisionPlan] | None = None,
    sequence_length: int,
    stride: int | None = None,
    calibrated: bool = True,
    baseline: bool = False,
    original: Any = None,
    roundable: Any = None,
    stored: torch.dtype | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Measure perplexity at full precision and at each precision, on the same tokens.

    Args:
        model: an elastic model, as `quept.load` returns it.
        tokens: the stream to predict, `(tokens,)`.
        precisions: the precisions to measure; parts that one does not name run on their master.
        plans: plans to measure as well, by name.
        sequence_length: tokens per window, see `perplexity`.
        stride: tokens between the starts of windows.
        calibrated: False for a model that was not calibrated: its bit-widths are left out.
        baseline: True adds plain rounding to nearest at the same granularity.
        original: the model before calibration; adds the KL divergence of all predictions from its own.
        roundable: an elastic, uncalibrated model to round for the baseline; None rounds the master of `model`.
        stored: the checkpoint's dtype, for the sizes; None is the dtype of the model.
        progress: called as (label, windows done, windows in total) after each forward pass, over all measurements.

    Raises `InvalidInput` for an original of another vocabulary, and for a bit-width that the model does not have.
    """
    wanted = _present(model, candidates(precisions, plans))  # a missing bit-width fails now, not after minutes
    compared = None if original is None else _Original(original, model)
    passes = 1 + (original is not None) + len(wanted) * (calibrated + baseline)
    measure = _Measurements(tokens, sequence_length, stride, compared, passes, progress)
    before = None if original is None else measure("the original model", original)[0]
    plain = model if roundable is None else roundable
    with at_precision(model, None):
        full_precision, full_precision_kl = measure(master_name(model), model)
        results = []
        for each in wanted:
            rounded = _rounded(plain, each, measure) if baseline else (None, None)
            results.append(_result(model, each, measure if calibrated else None, rounded, stored or model.dtype))
    return Evaluation(
        metric="perplexity",
        reference=master_name(model),
        full_precision=full_precision,
        full_precision_bytes=full_precision_bytes(model, stored or model.dtype),
        tokens=tokens.numel(),
        sequence_length=sequence_length,
        stride=stride or sequence_length,
        results=tuple(results),
        full_precision_kl=full_precision_kl,
        original=before,
    )


def _result(
    model: Any,
    candidate: Candidate,
    measure: "_Measurements | None",
    rounded: tuple[float | None, float | None],
    stored: torch.dtype,
) -> PrecisionResult:
    """Return the result of one candidate beside that of rounding; without `measure`, sizes alone."""
    with at_precision(model, candidate.precision):
        value, kl = (None, None) if measure is None else measure(candidate.label, model)
        bits, size = mean_bits(model), current_bytes(model, stored)
    return PrecisionResult(bits, candidate.name, value, rounded[0], size, kl, rounded[1])


def _present(model: Any, wanted: list[Candidate]) -> list[Candidate]:
    """Return the candidates; raises `InvalidInput` for a bit-width that the model does not have."""
    for each in wanted:
        with at_precision(model, each.precision):
            pass
    return wanted


def _rounded(model: Any, candidate: Candidate, measure: "_Measurements") -> tuple[float, float | None]:
    """Return the perplexity of a model rounded to nearest, and its divergence where there is an original."""
    with rounded_to_nearest(model, candidate.precision):
        return measure(f"{candidate.label}, rounding", model)


class _Original:
    """The model to compare predictions with, batch by batch; its logits are kept up to `KEPT_LOGITS` bytes."""

    def __init__(self, model: Any, other: Any) -> None:
        mine, others = model.config.get_text_config().vocab_size, other.config.get_text_config().vocab_size
        if mine != others:
            raise InvalidInput(
                f"The original model predicts {mine} tokens and this one {others}, so that they cannot be compared; "
                "give the model that was calibrated."
            )
        self._model, self._kept, self._bytes = model, dict[int, Tensor](), 0
        self._batch = self._predictions = 0
        self._total = 0.0

    def start(self) -> Callable[[Tensor, Tensor], None]:
        """Begin another pass over the same batches; returns a function to call with the ids and logits of each."""
        self._batch = self._predictions = 0
        self._total = 0.0
        return self._compare

    def mean(self) -> float:
        """Return the KL divergence of this pass, in nats per token; inf if predictions are not finite."""
        return self._total / self._predictions if math.isfinite(self._total) else math.inf

    def _compare(self, ids: Tensor, logits: Tensor) -> None:
        self._total += total_kl(self._logits(ids).flatten(0, 1), logits.flatten(0, 1))
        self._predictions += ids.numel()
        self._batch += 1

    def _logits(self, ids: Tensor) -> Tensor:
        found = self._kept.get(self._batch)
        if found is None:
            found = self._model(input_ids=ids.to(self._model.device), use_cache=False).logits.to(ids.device)
            if self._bytes + found.nbytes <= KEPT_LOGITS:
                self._kept[self._batch] = found
                self._bytes += found.nbytes
        return found


@dataclass
class _Measurements:
    """Perplexities on the same windows, `total` in number; progress runs over all of them."""

    tokens: Tensor
    sequence_length: int
    stride: int | None
    original: _Original | None
    total: int
    progress: Callable[[str, int, int], None] | None
    done: int = 0

    def __call__(self, label: str, model: Any) -> tuple[float, float | None]:
        """Return the perplexity of a model as it is, and its divergence from the original where there is one."""
        earlier, self.done = self.done, self.done + 1

        def report(done: int, windows: int) -> None:
            if self.progress is not None:
                self.progress(label, earlier * windows + done, self.total * windows)

        found = perplexity(
            model,
            self.tokens,
            sequence_length=self.sequence_length,
            stride=self.stride,
            progress=report,
            on_logits=None if self.original is None else self.original.start(),
        )
        return found.value, None if self.original is None else self.original.mean()
