"""The backend "cpu": quept's own kernels, where it was built with them.

A kernel is called directly: checking a tensor and passing its address takes a few microseconds, one of PyTorch's
custom operators some twenty.
"""

from quept.ops import reference
from quept.ops.cpu import extension, packed, rotation, tokens
from quept.ops.registry import Backend, register_kernel


class Cpu(Backend):
    """Kernels of the extension module, which has a path for each generation of processors."""

    def absence(self, device: str) -> str:
        """Return why no kernel runs on this type of device."""
        return extension.absence() if device == "cpu" else "it has kernels for CPUs only"

    def paths(self) -> tuple[str, ...]:
        """Return the paths of this processor, the widest first."""
        return extension.paths()

    def path(self) -> str | None:
        """Return the path in force."""
        return extension.path()

    def choose(self, path: str) -> None:
        """Take another path."""
        extension.choose(path)


BACKEND = Cpu("cpu")


def register() -> None:
    """Register the kernels."""
    register_kernel(reference.rotate, BACKEND, rotation.rotate)
    register_kernel(reference.quantize_tokens, BACKEND, tokens.quantize_tokens)
    register_kernel(reference.finish_product, BACKEND, tokens.finish_product)
    register_kernel(reference.packed_linear, BACKEND, packed.packed_linear)
    register_kernel(reference.dequantize, BACKEND, packed.dequantize)
    register_kernel(reference.rebuild, BACKEND, packed.rebuild)
