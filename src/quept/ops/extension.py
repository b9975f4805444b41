"""The extension module: whether it is there, which of its paths is taken, and what a user is told."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from quept.errors import InvalidInput

ENVIRONMENT = "QUEPT_NATIVE"
REVISION = "1"  # of what the kernels compute: another one may round otherwise
OFF = ("0", "off", "false", "no")
ON = ("", "1", "on", "true", "yes")

_state: dict[str, Any] = {"off": False}


@cache
def _load() -> tuple[ModuleType | None, str]:
    """The module on the path that the environment names, or None and why."""
    wanted = os.environ.get(ENVIRONMENT, "").strip().lower()
    if wanted in OFF:
        return None, f"{ENVIRONMENT}={wanted} flipped them off"
    try:
        # Behind torch, whose OpenMP runtime it looks up.
        module = import_module("quept.ops._native")
    except ModuleNotFoundError:
        return None, "quept was installed without them"
    except ImportError as error:
        return None, f"they could not be loaded ({error})"
    if wanted not in ON:
        known = module.paths()
        if wanted not in known:
            raise InvalidInput(
                f"{ENVIRONMENT} is {wanted!r}; this processor has {', '.join(known)}. Set it to one of these, to 0 for "
                "PyTorch's operations, or not at all."
            )
        module.choose(wanted)
    return module, ""


def available() -> bool:
    """Whether kernels run. The first time that they do not, and nobody flipped them off, a warning says what to do."""
    if _state["off"]:
        return False
    module, why = _load()
    if module is None and ENVIRONMENT not in why:
        _warn(why)
    return module is not None


def absence() -> str:
    """Why no kernel runs; empty where they do."""
    return _load()[1]


def native() -> Any:
    """The module, where kernels are `available`."""
    return _load()[0]


def require() -> Any:
    """The module; `InvalidInput` where there is none."""
    module = _load()[0]
    if module is None:
        raise InvalidInput(f"There are no kernels here: {absence()}.")
    return module


def paths() -> tuple[str, ...]:
    """The paths that run on this processor, the widest first; none without the module."""
    module = _load()[0]
    return () if module is None else tuple(module.paths())


def describe() -> str:
    """What runs here, in a sentence."""
    module, why = _load()
    if module is None:
        return f"PyTorch's operations, not quept's kernels: {why}.{'' if ENVIRONMENT in why else ' ' + ADVICE}"
    threads = f"{torch.get_num_threads()} of PyTorch's threads" if module.has_threads() else "one thread"
    return f"quept's kernels, {module.path()} of {', '.join(module.paths())}, on {threads}"


@contextmanager
def using(path: str | None) -> Iterator[None]:
    """Within it, kernels on `path`, one of `paths()`, or None for PyTorch's operations: for tests and comparisons."""
    module, before = _load()[0], dict(_state)
    chosen = None if module is None else module.path()
    _state["off"] = path is None
    try:
        if path is not None:
            require().choose(path)
        yield
    finally:
        _state.update(before)
        if module is not None:
            module.choose(chosen)


ADVICE = (
    "They need a C++ compiler (Debian: apt install g++) and Python's headers (python3-dev) when quept is installed: "
    "install it again with these for faster integer products and rotations, or set QUEPT_NATIVE=0 to leave it at that."
)


@cache
def _warn(why: str) -> None:
    warnings.warn(f"quept's kernels do not run: {why}. {ADVICE}", RuntimeWarning, stacklevel=2)
