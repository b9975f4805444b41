"""Building models, one thread at a time.

While transformers builds a model it changes what belongs to the whole process: PyTorch's default dtype, and how tensors
are initialized. Two threads that load at once would take each other's dtype, and leave the wrong one behind. What has
been built runs the same whatever the default is, so other threads may run models meanwhile.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

from torch import nn

from quept.forks import fork_safe_lock

_BUILDING = fork_safe_lock()


@contextmanager
def building() -> Iterator[None]:
    """Within: no other thread builds a model with quept; a fork waits as well."""
    with _BUILDING:
        yield


@contextmanager
def without_weights() -> Iterator[None]:
    """Within: parameters that this thread makes for modules are on the meta device; buffers have their values.

    Modules of other threads are made as ever, which is why it is not accelerate's `init_empty_weights`.
    """

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and get_ident() == mine:
            empty = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
            empty.__dict__.update(parameter.__dict__)  # marks of transformers
            module._parameters[name] = empty

    with _BUILDING:
        register, mine = nn.Module.register_parameter, get_ident()
        nn.Module.register_parameter = register_empty  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore[method-assign]
