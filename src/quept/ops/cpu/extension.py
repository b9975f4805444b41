"""The extension module built from `native/`: whether it is there, which path it takes, and what a user is told."""

import os
import warnings
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


@cache
def _load() -> tuple[ModuleType | None, str]:
    """Return the module on the path that the environment names, or None and the reason."""
    wanted = os.environ.get(ENVIRONMENT, "").strip().lower()
    if wanted in OFF:
        return None, f"{ENVIRONMENT}={wanted} turned them off"
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
    """Return whether the module is there. The first time that it is not, and was not turned off, warn what to do."""
    module, why = _load()
    if module is None and ENVIRONMENT not in why:
        _warn(why)
    return module is not None


def absence() -> str:
    """Return why there is no module; empty where there is one."""
    return _load()[1]


def native() -> Any:
    """Return the module, where it is `available`."""
    return _load()[0]


def require() -> Any:
    """Return the module; `InvalidInput` where there is none."""
    module = _load()[0]
    if module is None:
        raise InvalidInput(f"There are no kernels here: {absence()}.")
    return module


def paths() -> tuple[str, ...]:
    """Return the paths that run on this processor, the widest first; none without the module."""
    module = _load()[0]
    return () if module is None else tuple(module.paths())


def path() -> str | None:
    """Return the path in force; None without the module."""
    module = _load()[0]
    return None if module is None else str(module.path())


def choose(path: str) -> None:
    """Take another path, one of `paths()`; `InvalidInput` without the module."""
    require().choose(path)


def describe() -> str:
    """Say in a sentence which kernels run here."""
    module, why = _load()
    if module is None:
        return f"PyTorch's operations, not quept's kernels: {why}.{'' if ENVIRONMENT in why else ' ' + ADVICE}"
    threads = f"{torch.get_num_threads()} of PyTorch's threads" if module.has_threads() else "one thread"
    return f"quept's kernels, {module.path()} of {', '.join(module.paths())}, on {threads}"


ADVICE = (
    "They need a C++ compiler (Debian: apt install g++) and Python's headers (python3-dev) when quept is installed: "
    "install it again with these for faster integer products and rotations, or set QUEPT_NATIVE=0 to leave it at that."
)


@cache
def _warn(why: str) -> None:
    warnings.warn(f"quept's kernels do not run: {why}. {ADVICE}", RuntimeWarning, stacklevel=2)
