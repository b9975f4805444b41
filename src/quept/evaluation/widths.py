"""A model's perplexity and size at each width, beside full precision and plain rounding."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from quept.config import PrecisionPlan, Widths
from quept.errors import InvalidInput
from quept.evaluation.divergence import total_kl
from quept.evaluation.perplexity import perplexity
from quept.layers.size import current_bytes, full_precision_bytes, mean_bits
from quept.precision import at_precision, master_name, rounded_to_nearest

KEPT_LOGITS = 1 << 30  # bytes of an original's logits that are kept from one width to the next


@dataclass(frozen=True)
class WidthResult:
    """One precision: perplexity as calibrated and rounded to nearest, and the model's bytes when packed at it.

    `bits` is the width of the weights, and of a plan the mean over them; `precision` names it, and the others that were
    asked for, as in `w4a8`, or is the plan's name. `kl` and `baseline_kl` are the divergences of the predictions from
    the original model's, in nats per token, where there was one to compare with.
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
    """All widths of one model on one text; lower is better.

    `full_precision` is measured without a width; `reference` names what that is, which a store's master is not quite.
    `full_precision_bytes` are those of the model before it was calibrated, and `original` is its perplexity, where it
    was measured.
    """

    metric: str
    reference: str
    full_precision: float
    full_precision_bytes: int
    tokens: int
    sequence_length: int
    stride: int
    results: tuple[WidthResult, ...]
    full_precision_kl: float | None = None
    original: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For `json.dump`."""
        return asdict(self)


def evaluate_widths(
    model: Any,
    tokens: Tensor,
    precisions: Sequence[int | str | Widths],
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
    """Perplexity of an elastic model at full precision and at each of some precisions, on the same tokens.

    Args:
        model: an elastic model, as `quept.load` returns it.
        tokens: the stream to predict, `(tokens,)`.
        precisions: what to run at; what one does not name runs at full precision.
        plans: measured as well, by name.
        sequence_length, stride: of the windows, see `perplexity`.
        calibrated: False leaves out the calibrated widths, for a model that was not.
        baseline: True adds plain rounding to nearest at the same granularity.
        original: the model that was calibrated; adds the KL divergence of all predictions from its own.
        roundable: what is rounded for the baseline, elastic but not calibrated; None rounds what `model` was derived
            from, which at the width of a stored master is the master itself.
        stored: the checkpoint's dtype, for the sizes; None is the dtype that the model is held in.
        progress: told what is measured, and how much of all is done and to do, in windows.

    Raises `InvalidInput` for an original of another vocabulary.
    """
    parsed = [Widths.parse(precision) for precision in precisions]
    wanted: list[tuple[str, str, Widths | PrecisionPlan]] = [(str(each), named(each), each) for each in parsed]
    wanted += [(name, name, plan) for name, plan in (plans or {}).items()]
    for _, _, precision in wanted:
        with at_precision(model, precision):  # a width that is not there is told now, not after minutes
            pass
    plain = model if roundable is None else roundable
    compared = None if original is None else _Original(original, model)
    passes, begun = 1 + (compared is not None) + len(wanted) * (calibrated + baseline), 0

    def measure(label: str, measured: Any = model) -> tuple[float, float | None]:
        nonlocal begun
        earlier, begun = begun, begun + 1

        def report(done: int, total: int) -> None:
            if progress is not None:
                progress(label, earlier * total + done, passes * total)

        on_logits = None if compared is None else compared.start()
        found = perplexity(
            measured, tokens, sequence_length=sequence_length, stride=stride, progress=report, on_logits=on_logits
        )
        return found.value, None if compared is None else compared.mean()

    before = None if compared is None else measure("the original model", original)[0]
    with at_precision(model, None):
        full_precision, full_precision_kl = measure(master_name(model))
    results = []
    for name, label, precision in wanted:
        value = kl = rounded = rounded_kl = None
        with at_precision(model, None):
            if baseline:
                with rounded_to_nearest(plain, precision):
                    rounded, rounded_kl = measure(f"{label}, rounding", plain)
            with at_precision(model, precision):
                bits, bytes_ = mean_bits(model), current_bytes(model, stored or model.dtype)
                if calibrated:
                    value, kl = measure(label)
        results.append(WidthResult(bits, name, value, rounded, bytes_, kl, rounded_kl))
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


class _Original:
    """The model that predictions are compared with, batch by batch; its logits are kept as far as they fit."""

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
        """Begin another pass over the same batches; returns what is to be told of each."""
        self._batch = self._predictions = 0
        self._total = 0.0
        return self._compare

    def mean(self) -> float:
        """KL divergence of this pass, in nats per token."""
        return self._total / self._predictions

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


def named(widths: Widths) -> str:
    """A precision in words: `4 bits`, `w4a8`."""
    name = str(widths)
    return f"{name} bits" if name.isdigit() else name
