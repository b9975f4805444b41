"""The setting that a part of a model runs at, which belongs to the forward pass and not to the part.

Every part (a linear, an attention's operands, its keys and values) has a default setting, which all threads see. A
scope puts others in its place for the code inside it, in this thread or asyncio task alone: a context variable holds
them. So one model can run at several bit-widths at the same time.

Forward passes of a whole model enter a scope of their own, a snapshot of the defaults: one that has begun ends at the
settings that it began with, whatever another thread sets meanwhile. See `quept.precision`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from quept.forks import fork_safe_lock

Setting = TypeVar("Setting")

_SCOPE: ContextVar[Mapping["Adjustable[Any]", Any] | None] = ContextVar("quept_scope", default=None)
_DEFAULTS = fork_safe_lock()  # defaults are changed, and read, all together
_active, _active_lock = 0, fork_safe_lock()  # scopes in all threads, without snapshots


class Adjustable(nn.Module, Generic[Setting]):
    """A part of a model that runs at a setting."""

    _default: Setting

    @property
    def setting(self) -> Setting:
        """The setting of the innermost scope that has one for this part, else the default."""
        if torch.compiler.is_compiling():
            # A compiler cannot look into context variables. Without scopes there is nothing to look for.
            return self._default if not _active else _read_uncompiled(self)
        scope = _SCOPE.get()
        if scope is None:
            return self._default
        found: Setting = scope.get(self, self._default)
        return found

    @property
    def default(self) -> Setting:
        """The setting outside scopes."""
        return self._default

    def set_default(self, setting: Setting) -> None:
        """Set what holds outside scopes, for all threads."""
        # Past the setter of modules, which looks for parameters first: with it, most of a switch would be that.
        self.__dict__["_default"] = setting


Settings = Mapping[Adjustable[Any], Any]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _read_uncompiled(part: Adjustable[Setting]) -> Setting:
    found: Setting = (_SCOPE.get() or {}).get(part, part._default)
    return found


@contextmanager
def scope(settings: Settings) -> Iterator[None]:
    """Within: parts run at these settings, in this thread or asyncio task alone; others as outside."""
    token = _SCOPE.set({**(_SCOPE.get() or {}), **settings})
    _count(1)
    try:
        yield
    finally:
        _count(-1)
        _SCOPE.reset(token)


def _count(change: int) -> None:
    global _active
    with _active_lock:
        _active += change


class _Snapshot(dict[Adjustable[Any], Any]):
    """The settings of one forward pass; `outside` is the scope that it began in, `depth` counts passes inside it."""

    outside: Settings | None = None
    depth = 1


def change(settings: Settings) -> None:
    """Change settings where they hold: in the scope of the code that asks if it has the parts, else the defaults.

    Forward passes that have begun, the one that asks included, end at the settings that they began with.
    """
    holder: _Snapshot | None = None
    scope = _SCOPE.get()
    while isinstance(scope, _Snapshot):
        holder, scope = scope, scope.outside
    scoped = {part: setting for part, setting in settings.items() if scope is not None and part in scope}
    if scoped:
        changed = {**(scope or {}), **scoped}
        if holder is None:
            _SCOPE.set(changed)
        else:
            holder.outside = changed
    with _DEFAULTS:
        for part, setting in settings.items():
            if part not in scoped:
                part.set_default(setting)


def in_force(parts: Iterable[Adjustable[Any]]) -> dict[Adjustable[Any], Any]:
    """Return the settings of parts, all from before or all from behind a change that another thread makes meanwhile."""
    with _DEFAULTS:
        return {part: part.setting for part in parts}


def enter_pass(parts: Iterable[Adjustable[Any]]) -> None:
    """Begin a forward pass of parts: until `leave_pass`, they run at the settings that they have now."""
    outside = _SCOPE.get()
    if isinstance(outside, _Snapshot) and (first := next(iter(parts), None)) is not None and first in outside:
        outside.depth += 1
        return
    snapshot = _Snapshot({**(outside or {}), **in_force(parts)})
    snapshot.outside = outside
    _SCOPE.set(snapshot)


def leave_pass() -> None:
    """End the forward pass that was begun last."""
    snapshot = _SCOPE.get()
    if isinstance(snapshot, _Snapshot):
        snapshot.depth -= 1
        if not snapshot.depth:
            _SCOPE.set(snapshot.outside)
