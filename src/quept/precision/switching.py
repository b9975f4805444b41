"""Switching the precision of a model while it runs.

`set_precision` sets a model's default, which all threads see; a forward pass that has begun ends at the precision that
it began with. `at_precision` holds in its own thread or asyncio task alone: one model runs at several precisions at
once.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from quept.attention import install
from quept.config import PlannedBits, PrecisionPlan
from quept.layers import AttentionOperands
from quept.layers.attention import OperandSetting
from quept.layers.keyvalues import KeyValues
from quept.layers.setting import Adjustable, change, enter_pass, in_force, leave_pass, scope
from quept.precision.assignment import PrecisionLike, planned_bits
from quept.precision.parts import Parts


def set_precision(model: nn.Module, precision: PrecisionLike, *, strict: bool = True) -> None:
    """Run `model` at a bit-width, by a plan, or (None) on its master, from the next forward pass on.

    The master of an artifact with a store, as the recipe `best` makes them, has 8 bits; without a store it is the
    weight at full precision. Activations, keys and values are at full precision beside it.

    Bits are a number, for weights and for the activations that were calibrated with them, or say what they are of:
    `"w4a8"`, `"w4a4kv4"`, `"kv4"`. Parts that are not named stay as they are, and so does the key-value cache of a
    generation in progress. All threads see the change, unless they are in `at_precision`; within `at_precision`, it
    holds until that ends. Raises `InvalidInput`, with the model untouched, for bits that were not calibrated and,
    unless `strict` is False, for a plan with entries that name nothing in the model (see `PrecisionPlan.unmatched`).
    """
    settings = Parts.of(model).settings(precision, strict)
    _install(model, settings)
    change(settings)


def precision_of(model: nn.Module) -> PrecisionPlan:
    """Return the plan in force in the thread or asyncio task that asks."""
    parts = Parts.of(model)
    with scope(in_force(parts.all())):
        plan: dict[str, PlannedBits] = {path: planned_bits(layer) for path, layer in parts.linears.items()}
        plan |= {path: each.bits for path, each in parts.key_values.items()}
        return PrecisionPlan(plan | {path: each.bits for path, each in parts.operands.items()})


@contextmanager
def at_precision(model: nn.Module, precision: PrecisionLike) -> Iterator[None]:
    """Run the enclosed code at `precision`, in this thread or asyncio task alone; see `set_precision` for the values.

    Other threads run at theirs meanwhile. Threads that begin within start at the model's default, asyncio tasks at this
    precision.
    """
    parts = Parts.of(model)
    settings = parts.settings(precision)
    _install(model, settings)
    with scope(in_force(parts.all()) | settings):
        yield


@contextmanager
def rounded_to_nearest(model: nn.Module, precision: PrecisionLike) -> Iterator[None]:
    """Run the enclosed code with plain rounding to nearest, the baseline, at the same granularity, in this thread
    alone.

    Parts that `precision` does not name run on their master; keys and values are quantized as ever.
    """
    parts = Parts.of(model)
    settings = parts.settings(precision)
    _install(model, settings)
    for layer in parts.linears.values():
        given = settings.get(layer)
        settings[layer] = layer.nearest_at(None, None) if given is None else layer.nearest_at(*given[:2])
    for each in parts.operands.values():
        settings[each] = settings.get(each, OperandSetting(None))._replace(unclipped=True)
    with scope(in_force(parts.all()) | settings):
        yield


def begin_pass(model: nn.Module, args: Any) -> None:
    """Begin a forward pass: what it runs at does not change any more."""
    if not torch.compiler.is_compiling():
        enter_pass(list(Parts.of(model).all()))


def end_pass(model: nn.Module, args: Any, output: Any) -> None:
    """End a forward pass, however it ended."""
    if not torch.compiler.is_compiling():
        leave_pass()


def _install(model: nn.Module, settings: Mapping[Adjustable[Any], Any]) -> None:
    """Let attention run through its parts where any of these settings asks for that."""
    bits = [setting for part, setting in settings.items() if isinstance(part, KeyValues)]
    bits += [setting.bits for part, setting in settings.items() if isinstance(part, AttentionOperands)]
    if any(each is not None for each in bits):
        install(cast(Any, model).config)  # again, where the attention implementation was changed in the meantime
