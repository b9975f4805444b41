"""Derived weights that stay in memory between forward passes."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from weakref import WeakSet

from torch import nn

from quept.layers import ElasticLinear, WeightCache
from quept.layers.cache import Key, Sized
from quept.precision.assignment import PrecisionLike
from quept.precision.parts import LOADED, Parts, elastic_linears
from quept.precision.switching import begin_pass, end_pass


def _new_executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "quept-prefetch")  # one, so that what was asked for first comes first


_ahead = _new_executor()
_unfinished: "WeakSet[Future[int]]" = WeakSet()


def prefetch(model: nn.Module, precision: PrecisionLike) -> "Future[int]":
    """Derive, beside whatever else runs, the weights that `precision` needs, so that a switch to it costs nothing.

    Weights that are resident and not in force make room; where room is short, those left out are derived when they are
    first used. The result is how many linears have their weight resident now. Raises as `set_precision` does. In a
    forked child, what the parent has not finished is cancelled; the child may ask for it again.
    """
    parts = Parts.of(model)
    wanted = [(part, setting) for part, setting in parts.settings(precision).items() if isinstance(part, ElasticLinear)]
    in_force = {key for key, _ in _in_force(model)}
    cache = next(iter(parts.linears.values())).weight_cache

    def derive() -> int:
        forms = [layer.resident_form(setting) for layer, setting in wanted]
        return sum(cache.prefetch(*form, in_force) for form in forms if cache is not None and form is not None)

    future = _ahead.submit(derive)
    _unfinished.add(future)
    future.add_done_callback(_unfinished.discard)
    return future


def _begin_child() -> None:
    """Let a forked child prefetch by a thread of its own: those of its parent are not there."""
    global _ahead
    _ahead = _new_executor()
    for future in list(_unfinished):
        Future.__init__(future)  # its lock may be held by a thread that is not there
        future.cancel()
    _unfinished.clear()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_begin_child)


def make_resident(model: nn.Module) -> int:
    """Derive the weights in force that are not resident, instead of at their first use, as far as there is room.

    Returns the bytes of all weights in force that are derived.
    """
    cache = next(iter(Parts.of(model).linears.values())).weight_cache
    return 0 if cache is None else sum(cache.get(*form).nbytes for form in _in_force(model))


def _in_force(model: nn.Module) -> Iterator[tuple[Key, Callable[[int], Sized]]]:
    """Yield what the next forward pass needs resident, and what derives it."""
    for layer in Parts.of(model).linears.values():
        form = layer.resident_form(layer.setting)
        if form is not None:
            yield form


def keep_weights(model: nn.Module, budget: int | None) -> WeightCache:
    """Keep derived weights of a model between forward passes within `budget` bytes (None: no limit)."""
    cache = WeightCache(budget)
    # A model is also called without its head, for features.
    for module in {model, getattr(model, "base_model", model)}:
        if getattr(module, LOADED, None) is None:
            module.register_forward_pre_hook(begin_pass)
            module.register_forward_hook(end_pass, always_call=True)
        setattr(module, LOADED, None)
        setattr(module, LOADED, Parts.of(module))
    for layer in elastic_linears(model).values():
        layer.weight_cache = cache
    return cache
