"""Derived weights that stay in memory between forward passes."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from torch import nn

from quept.layers import ElasticLinear, WeightCache
from quept.layers.cache import Key, Sized
from quept.precision.assignment import PrecisionLike
from quept.precision.parts import LOADED, Parts, elastic_linears
from quept.precision.switching import begin_pass, end_pass

_AHEAD = ThreadPoolExecutor(1, "quept-prefetch")  # one, so that what was asked for first comes first


def prefetch(model: nn.Module, precision: PrecisionLike) -> "Future[int]":
    """Derive, beside whatever else runs, the weights that `precision` needs, so that a switch to it costs nothing.

    Weights that are resident and not in force make room; where room is short, those left out are derived when they are
    first used. The result is how many linears have their weight resident now. Raises as `set_precision` does.
    """
    parts = Parts.of(model)
    wanted = [(part, setting) for part, setting in parts.settings(precision).items() if isinstance(part, ElasticLinear)]
    in_force = {key for key, _ in _in_force(model)}
    cache = next(iter(parts.linears.values())).weight_cache

    def derive() -> int:
        forms = [layer.resident_form(setting) for layer, setting in wanted]
        return sum(cache.prefetch(*form, in_force) for form in forms if cache is not None and form is not None)

    return _AHEAD.submit(derive)


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
    if getattr(model, LOADED, None) is None:
        model.register_forward_pre_hook(begin_pass)
        model.register_forward_hook(end_pass, always_call=True)
    setattr(model, LOADED, None)
    setattr(model, LOADED, Parts.of(model))
    for layer in elastic_linears(model).values():
        layer.weight_cache = cache
    return cache
