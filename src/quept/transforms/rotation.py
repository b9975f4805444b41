"""QuaRot (arXiv 2404.00456): rotations that spread outliers, folded into weights where possible, else at run time.

- The residual stream is rotated where it enters the first block, and rotated back where it leaves the last. In between
  the rotation is in the weights of the linears that write to it and read from it. The norms' weights are folded into
  the linears that read them, since a norm without weights commutes with rotations; a norm that subtracts the mean
  commutes with rotations that keep the mean. Embeddings and head do not change, so that tied weights stay tied.
- Values are rotated per head, in the weights of the value projection and of the output projection. If a recipe enables
  `across_heads`, the input of the output projection is also rotated over all heads at run time.
- All other inputs, for instance those behind an activation function, are rotated at run time.

Where a norm lies between a linear's output and the residual stream (Gemma), the residual stream is not rotated, and the
inputs of the linears that read it are rotated at run time.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quept.config import Rotation
from quept.layers.inputs import OnlineTransform
from quept.layers.linear import weight_of
from quept.models import Architecture, BlockContext, Values
from quept.numerics import hadamard
from quept.ops import rotate
from quept.transforms.base import FoldedInput, Transform


class StreamRotation:
    """The rotation of a residual stream of `size` channels: random signs, then a Hadamard matrix.

    The signs keep channels that are large together from adding up; they are equal on every machine. If `centered`, a
    reflection follows that maps the rotated vector of ones back to the vector of ones, so that means do not change.
    """

    def __init__(self, size: int, centered: bool) -> None:
        self.size, self.hadamard = size, hadamard.Rotation.of(size)
        self.signs = _signs(f"residual stream of {size}", size)
        mean = torch.full((size,), size**-0.5, dtype=torch.float64)
        across = self.hadamard(mean * self.signs) - mean
        length = across.norm()
        self.across = across / length if centered and length > 1e-6 else None

    def __call__(self, values: Tensor) -> Tensor:
        """Return `Q v` for every vector `v` along the last dimension."""
        return self._reflect(rotate(values * self.signs.to(values), self.hadamard))

    def inverse(self, values: Tensor) -> Tensor:
        """Return `Q^T v` for every vector `v` along the last dimension."""
        return rotate(self._reflect(values), self.hadamard, inverse=True) * self.signs.to(values)

    def _reflect(self, values: Tensor) -> Tensor:
        if self.across is None:
            return values
        across: Tensor = self.across.to(values)
        reflected: Tensor = values - 2 * (values @ across).unsqueeze(-1) * across
        return reflected


@dataclass(frozen=True)
class Rotate(Transform):
    """QuaRot's rotations of every block."""

    settings: Rotation = field(default_factory=lambda: Rotation(enabled=True))

    def online(self, block: nn.Module, context: BlockContext) -> Mapping[str, OnlineTransform]:
        """Return a Hadamard rotation for every input to round that no rotation in the weights reaches."""
        folded = _folded(context.architecture, context.config, self.settings)
        linears = [path for readers in context.inputs if not folded & set(readers) for path in readers]
        return {path: hadamard.Rotation.of(weight_of(block.get_submodule(path)).shape[1]) for path in linears}

    def attach(self, block: nn.Module, context: BlockContext) -> None:
        """Rotate the residual stream where it enters the first block, and back where it leaves the last."""
        stream = _stream(context.architecture, context.config)
        if stream is None:
            return
        if context.is_first:
            block.register_forward_pre_hook(_Enter(stream))
        if context.is_last:
            block.register_forward_hook(_Leave(stream))

    @torch.no_grad()
    def fold(self, block: nn.Module, context: BlockContext, inputs: Mapping[str, Tensor]) -> Mapping[str, FoldedInput]:
        """Rotate the weights, and fold the norms' weights into the linears that read them."""
        architecture = context.architecture
        stream = _stream(architecture, context.config)
        if stream is not None:
            assert architecture.residual is not None
            for site in architecture.sites:
                if not architecture.is_linear(site.producer):
                    _move_norm(block, site.producer, site.consumers, architecture.norm_offset)
                    for path in site.consumers:
                        _rotate_inputs(block.get_submodule(path), stream)
            for path in architecture.residual.writers:
                _rotate_outputs(block.get_submodule(path), stream)
        for site in architecture.sites:
            if isinstance(site.channels, Values):
                _rotate_values(block, site.producer, site.consumers, site.channels, context.config)
        for path, rotation in self.online(block, context).items():
            _rotate_inputs(block.get_submodule(path), rotation)
        return {}

    def notes(self, block: nn.Module, context: BlockContext) -> list[str]:
        """Say which channels are rotated in parts, and whether the residual stream is not rotated in the weights."""
        architecture, config = context.architecture, context.config
        online = self.online(block, context)
        rotated = {f"the inputs of {path}": _inputs_of(block, path) for path in online}
        for site in architecture.sites:
            if isinstance(site.channels, Values):
                channels = _inputs_of(block, site.consumers[0])
                rotated["the values of each head"] = channels // config.num_attention_heads
        notes = []
        if stream := _stream(architecture, config):
            rotated["the residual stream"] = stream.size
        else:
            notes.append(
                f"The residual stream of this {architecture.model_type} cannot be rotated in the weights around it, so "
                f"{len(online)} inputs per block are rotated at run time."
            )
        for what, size in rotated.items():
            if not (rotation := hadamard.Rotation.of(size)).whole:
                parts = " + ".join(map(str, rotation.orders))
                notes.append(f"No Hadamard matrix of order {size} is known here: {what} are rotated in parts, {parts}.")
        return notes


@dataclass(frozen=True)
class _Enter:
    """A hook on the first block that rotates its input."""

    stream: StreamRotation

    def __call__(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.stream(args[0]), *args[1:])


@dataclass(frozen=True)
class _Leave:
    """A hook on the last block that rotates its output back."""

    stream: StreamRotation

    def __call__(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (self.stream.inverse(output[0]), *output[1:])
        return self.stream.inverse(output)


def _signs(purpose: str, size: int) -> Tensor:
    """Return random signs, `(size,)`, equal on every machine for equal arguments."""
    drawn = hashlib.shake_256(purpose.encode()).digest(size)
    return torch.tensor([1.0 if byte & 1 else -1.0 for byte in drawn], dtype=torch.float64)


def _stream(architecture: Architecture, config: Any) -> StreamRotation | None:
    """Return the rotation of the residual stream, or None if it cannot be folded into the weights."""
    residual = architecture.residual
    if residual is None or not residual.when(config):
        return None
    return StreamRotation(config.hidden_size, residual.centered)


def _folded(architecture: Architecture, config: Any, settings: Rotation) -> set[str]:
    """Return the linears whose inputs are rotated by the weights before them alone."""
    stream = _stream(architecture, config)
    return {
        path
        for site in architecture.sites
        for path in site.consumers
        if (isinstance(site.channels, Values) and not settings.across_heads)
        or (stream is not None and not architecture.is_linear(site.producer))
    }


def _inputs_of(block: nn.Module, path: str) -> int:
    return weight_of(block.get_submodule(path)).shape[1]


def _rotate_inputs(linear: nn.Module, rotation: Callable[[Tensor], Tensor]) -> None:
    weight = weight_of(linear)
    weight.copy_(rotation(weight.double()))


def _rotate_outputs(linear: Any, rotation: Callable[[Tensor], Tensor]) -> None:
    weight = weight_of(linear)
    weight.copy_(rotation(weight.double().T).T)
    if linear.bias is not None:
        linear.bias.copy_(rotation(linear.bias.double()))


def _rotate_values(block: nn.Module, producer: str, consumers: tuple[str, ...], values: Values, config: Any) -> None:
    """Rotate each head's values in the value projection, and back in the output projection.

    Random signs per key-value head follow: without them, a rotation over all heads would undo part of this one.
    """
    made: Any = block.get_submodule(producer)
    rows_made, taken = weight_of(made), [weight_of(block.get_submodule(path)) for path in consumers]
    channels = taken[0].shape[1]
    heads: int = config.num_attention_heads
    rotation = hadamard.Rotation.of(channels // heads)
    rows = values.rows(config, channels).view(heads, -1)
    signs = {int(head[0]): _signs(f"values in row {int(head[0])}", len(head)) for head in rows}
    for weight in taken:
        rotated = rotation(weight.double().reshape(len(weight), heads, -1))
        rotated *= torch.stack([signs[int(head[0])] for head in rows]).to(rotated)
        weight.copy_(rotated.flatten(1))
    for head in torch.unique(rows, dim=0).to(rows_made.device):  # several heads may read the same values
        sign = signs[int(head[0])].to(rows_made.device)
        rows_made[head] = (rotation(rows_made[head].double().T) * sign).T.to(rows_made.dtype)
        if made.bias is not None:
            made.bias[head] = (rotation(made.bias[head].double()) * sign).to(made.bias.dtype)


def _move_norm(block: nn.Module, norm_path: str, consumers: tuple[str, ...], offset: float) -> None:
    """Fold a norm's weight and bias, if it has them, into the linears that read it."""
    norm: Any = block.get_submodule(norm_path)
    for path in consumers:
        linear: Any = block.get_submodule(path)
        if getattr(norm, "bias", None) is not None:
            linear.bias.add_(weight_of(linear).double() @ norm.bias.double())
        if getattr(norm, "weight", None) is not None:
            weight_of(linear).mul_(norm.weight.double() + offset)
    if getattr(norm, "bias", None) is not None:
        norm.bias.zero_()
    if getattr(norm, "weight", None) is not None:
        norm.weight.fill_(1 - offset)
