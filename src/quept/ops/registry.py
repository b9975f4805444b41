"""Operators, and the backends that have kernels for them.

An operator is a function written with PyTorch, its reference, which runs anywhere and says by its docstring and its
numbers what a kernel has to compute. A backend registers kernels for the operators that it makes faster:

    BACKEND = Backend("triton")

    def dequantize(weight: PackedWeight, dtype: torch.dtype, rows: slice | None = None) -> Tensor | NotImplementedType:
        if not weight.codes.is_cuda:
            return NotImplemented
        ...

    register_kernel(ops.dequantize, BACKEND, dequantize)

A call tries the kernels in order. A kernel returns `NotImplemented` for arguments that it does not take, and then the
next one is tried, and at the end the reference, which also raises the errors for arguments that do not fit. So a kernel
takes only what it has checked, and this module is the one place where a kernel is chosen.

A compiler (`torch.compile`) cannot look into a kernel. It is given the operator's `traced` function where there is one,
and otherwise traces the kernels that are registered as traceable, and the reference.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from types import NotImplementedType
from typing import Generic, NamedTuple, ParamSpec, TypeVar

import torch

from quept.errors import InvalidInput

P = ParamSpec("P")
R = TypeVar("R")


class Backend:
    """A set of kernels that are present or absent together.

    A subclass says where its kernels cannot run, and names its paths if it has several versions of each kernel.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.enabled = True  # `using` changes it

    def absence(self, device: str) -> str:
        """Return why no kernel runs on this type of device ("cpu", "cuda"); empty where they run."""
        return ""

    def paths(self) -> tuple[str, ...]:
        """Return the names of the paths that this machine can run."""
        return ()

    def path(self) -> str | None:
        """Return the path in force, if there are paths."""
        return None

    def choose(self, path: str) -> None:
        """Run kernels on `path`, one of `paths()`, from now on."""
        raise NotImplementedError(f"{self.name} has no paths")


class Kernel(NamedTuple):
    """A backend's function for an operator, with the operator's signature."""

    backend: Backend
    run: Callable[..., object]
    traceable: bool  # whether a compiler can look into it


class Operator(Generic[P, R]):
    """A function with a reference and any number of kernels, tried in the order of `kernels`."""

    def __init__(self, reference: Callable[P, R]) -> None:
        self.reference = reference
        self.kernels: list[Kernel] = []
        self.traced: Callable[P, R] | None = None
        update_wrapper(self, reference)
        self.name = reference.__name__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the result of the first kernel that takes the arguments, or else the reference's."""
        # A token passes here for every linear of a model: nothing more than this.
        tracing = torch.compiler.is_compiling()
        if tracing and self.traced is not None:
            return self.traced(*args, **kwargs)
        for backend, run, traceable in self.kernels:
            if backend.enabled and (traceable or not tracing):
                result = run(*args, **kwargs)
                if result is not NotImplemented:
                    return result  # type: ignore[return-value]
        return self.reference(*args, **kwargs)

    def backend_on(self, device: str) -> Backend | None:
        """Return the first enabled backend whose kernel runs on this type of device; None where the reference does."""
        for kernel in self.kernels:
            if kernel.backend.enabled and not kernel.backend.absence(device):
                return kernel.backend
        return None


BACKENDS: dict[str, Backend] = {}  # by name


def operator(reference: Callable[P, R]) -> Operator[P, R]:
    """Make an operator of its reference; a decorator."""
    return Operator(reference)


def register_kernel(
    operator: Operator[P, R],
    backend: Backend,
    kernel: Callable[P, R | NotImplementedType],
    *,
    traceable: bool = False,
    first: bool = False,
) -> None:
    """Add a kernel to an operator, behind those that it has, or with `first` in front of them.

    `kernel` has the operator's signature and returns `NotImplemented` for arguments that it does not take. `traceable`
    tells that it consists of PyTorch's operations or custom operators, so that a compiler can look into it.
    `ValueError` if the backend has a kernel for the operator already, or another backend has its name.
    """
    if BACKENDS.setdefault(backend.name, backend) is not backend:
        raise ValueError(f"there is another backend named {backend.name!r}; choose another name")
    if any(other.backend is backend for other in operator.kernels):
        raise ValueError(f"the backend {backend.name!r} has a kernel for {operator.name!r} already")
    operator.kernels.insert(0 if first else len(operator.kernels), Kernel(backend, kernel, traceable))


@contextmanager
def using(*names: str | None) -> Iterator[None]:
    """Within it, run kernels of the named backends only: for tests and comparisons.

    A name is one of `BACKENDS`, or one of a backend's `paths()`, which selects the path as well. None, or no name,
    leaves the references alone. `InvalidInput` for a name that this machine does not have. All threads are affected.
    """
    wanted = dict(_find(name) for name in names if name is not None)
    before = [(backend, backend.enabled, backend.path()) for backend in BACKENDS.values()]
    try:
        for backend, _, _ in before:
            backend.enabled = backend in wanted
        for backend, path in wanted.items():
            if path is not None:
                backend.choose(path)
        yield
    finally:
        for backend, enabled, path in before:
            backend.enabled = enabled
            if path is not None:
                backend.choose(path)


def device_types() -> tuple[str, ...]:
    """Return the types of devices that this machine has: "cpu", and that of its accelerator if it has one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ("cpu",) if accelerator is None else ("cpu", accelerator.type)


def _find(name: str) -> tuple[Backend, str | None]:
    """Return the backend of this name, or the backend with this path and the path."""
    absent = []
    for backend in BACKENDS.values():
        reasons = [backend.absence(device) for device in device_types()]
        if all(reasons):
            absent.append(f"{backend.name} does not run here ({reasons[0]})")
        elif name == backend.name:
            return backend, None
        elif name in backend.paths():
            return backend, name
    present = [each for backend in BACKENDS.values() for each in (backend.name, *backend.paths())]
    raise InvalidInput(
        f"No backend or path that runs here is named {name!r}. Choose among {', '.join(present)}"
        f"{'; ' + ', '.join(absent) if absent else ''}."
    )
