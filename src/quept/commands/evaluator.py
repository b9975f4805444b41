"""Measuring plans on data."""

from pathlib import Path
from typing import Any

from quept.commands.opening import open_any
from quept.commands.sensitivity import draw_samples
from quept.evaluation.judges import DataOptions, Report
from quept.models.task import Note
from quept.precision import PrecisionLike, at_precision
from quept.search.target import SearchTarget, search_target


class PlanEvaluator:
    """An artifact's model and data to measure plans on.

    Attributes:
        metric: the name of what `quality` returns; lower is better.
        amount: the amount of data, in words.
    """

    def __init__(
        self,
        model: Any,
        data: str | Path,
        *,
        samples: int | None = None,
        options: DataOptions = DataOptions(),  # noqa: B008
        device: str = "auto",
        dtype: str = "auto",
        progress: Report = lambda label, done, total: None,
        note: Note = lambda text: None,
    ) -> None:
        """Open data for an artifact, by its directory or as a model by `quept.load`.

        `samples` of the data, None for the task's number, are for `target`; `options` say how much of it is for
        `quality`. `device` and `dtype` are for a path.
        """
        opened = open_any(model, None, device, dtype)
        self.model, self.progress, self.plans = opened.model, progress, 0
        self._data, self._samples, self._note = data, samples, note
        self._length = options.sequence_length
        self._judge = opened.task.judge(self.model, opened.processor, data, options, note=note)
        self.metric, self.amount = self._judge.metric, self._judge.amount

    def target(self) -> SearchTarget:
        """Return the model with samples of the data."""
        drawn = draw_samples(self.model, self._data, self._samples, self._length, seed=0, note=self._note)
        return search_target(self.model, drawn)

    def quality(self, precision: PrecisionLike) -> float:
        """Return the metric at a precision or plan; parts that it does not name run on their master."""
        self.plans += 1
        with at_precision(self.model, None), at_precision(self.model, precision):
            return self._judge.quality(self.model, f"plan {self.plans}", self.progress)
