"""Comparisons that tests of whole models share."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

import quept


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of what is expected."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def assert_saving_keeps_everything(
    artifact: Path, directory: Path, logits: Callable[[Any], Tensor], precisions: Iterable[object]
) -> None:
    """Load `artifact`, save it to `directory` and load that: tensors and logits at all precisions must be equal."""
    first = quept.load(artifact)
    quept.save(first, directory)
    second = quept.load(directory)
    # The files' records aside: a saved shard need not carry the notes by which a calibration resumes.
    assert second.quept_manifest.updated(files={}) == first.quept_manifest.updated(files={})
    before, after = first.state_dict(), second.state_dict()
    assert list(before) == list(after)
    assert all(value.dtype == after[name].dtype and value.equal(after[name]) for name, value in before.items())
    seen = []
    for precision in precisions:
        quept.set_precision(first, precision)
        quept.set_precision(second, precision)
        seen.append(logits(first))
        assert logits(second).equal(seen[-1])
    assert all(not a.equal(b) for a, b in pairwise(seen)), "precisions differ"
