"""Products with packed weights, their dense form, and their codes rebuilt from what is stored."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quept.ops import extension

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as the kernels number them


@dataclass(frozen=True, eq=False)
class NativeWeight:
    """A packed weight as the kernels know it: where its tensors are, which it keeps alive."""

    handle: Any
    shape: tuple[int, int]
    multiplies_integers: bool
    multiply: Any
    held: tuple[Tensor | None, ...]


def native_weight(
    shape: tuple[int, int],
    bits: int,
    inputs_per_scale: int,
    codes: Tensor,
    scale: Tensor | None,
    row_scale: Tensor,
    zero_point: Tensor,
) -> NativeWeight | None:
    """What kernels need of a `numerics.packed.PackedWeight`, whose tensors were checked.

    None where there are no kernels, or tensors are not on a CPU, or there is nothing in them.
    """
    held = (codes, scale, row_scale, zero_point)
    if not shape[0] * shape[1] or not all(each is None or is_plain(each) for each in held):
        return None
    if not extension.available():
        return None
    addresses = [0 if each is None else each.data_ptr() for each in held]
    module = extension.native()
    handle = module.PackedWeight(*addresses, *shape, bits, inputs_per_scale)
    return NativeWeight(handle, shape, handle.multiplies_integers, module.multiply, held)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has memory that kernels can read."""
    # Exactly these classes: others, such as a tracer's, have no memory to read from.
    if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
        return False
    return tensor.is_cpu and tensor.layout is torch.strided and not tensor.is_neg() and not tensor.is_conj()


def multiply(x: Tensor, weight: NativeWeight, bias: Tensor | None) -> Tensor:
    """`numerics.packed.integer_product` of `x`, `(..., in)`, of a type that kernels know, and plain like `bias`."""
    # A matrix of a few thousand weights takes as long as ten calls of PyTorch's: what is not needed is left out.
    dtype, shape, (out_features, in_features) = x.dtype, x.shape, weight.shape
    if shape[-1] != in_features or not weight.multiplies_integers:
        raise ValueError(f"{shape[-1]} channels are not multiplied by a weight of {in_features} in integers")
    if x.is_contiguous():
        tokens, stride = x.numel() // in_features, in_features
    else:
        x = x.reshape(-1, in_features) if x.dim() != 2 else x
        x = x if x.stride(1) == 1 else x.contiguous()
        tokens, stride = x.shape[0], x.stride(0)
    address = 0
    if bias is not None:
        if bias.shape != (out_features,):
            raise ValueError(f"the bias is {tuple(bias.shape)}; it has to be {(out_features,)}")
        if bias.dtype is not dtype or not bias.is_contiguous():
            bias = bias.to(dtype).contiguous()
        address = bias.data_ptr()
    result = torch.empty((*shape[:-1], out_features), dtype=dtype)
    if tokens:
        weight.multiply(
            weight.handle,
            *(x.data_ptr(), TYPES[dtype], tokens, stride, address, result.data_ptr(), torch.get_num_threads()),
        )
    return result


def dense(weight: NativeWeight, dtype: torch.dtype, first: int, rows: int, out: Tensor | None = None) -> Tensor:
    """`numerics.packed.PackedWeight.dense` of rows from `first` on, in a type that kernels know; in `out` if given."""
    shape = (rows, weight.shape[1])
    result = torch.empty(shape, dtype=dtype) if out is None else out
    if result.shape != shape or result.dtype != dtype or not result.is_contiguous():
        raise ValueError(f"{rows} rows of {weight.shape[1]} do not go into {result.dtype} {tuple(result.shape)}")
    if not 0 <= first <= first + rows <= weight.shape[0]:
        raise ValueError(f"a weight of {weight.shape[0]} rows has none from {first} to {first + rows}")
    if rows:
        extension.native().dense(weight.handle, first, rows, result.data_ptr(), TYPES[dtype], torch.get_num_threads())
    return result


def rebuild(
    weight: NativeWeight,
    symmetric: bool,
    master: Tensor,
    master_scale: Tensor,
    master_group: int,
    adapter: tuple[Tensor, Tensor, Tensor] | None,
    clip_ratios: Tensor | None,
    plane: Tensor | None,
) -> bool:
    """Fill a packed weight's new tensors from what `numerics.stored` describes, checked; False where kernels cannot."""
    up, down, adapter_scale = adapter or (None, None, None)
    given = (master, master_scale, up, down, adapter_scale, clip_ratios, plane)
    if not all(each is None or is_plain(each) for each in given):
        return False
    kept = [None if each is None else each.contiguous() for each in given]
    addresses = [0 if each is None else each.data_ptr() for each in kept]
    rank = 0 if down is None else len(down)
    extension.native().rebuild(
        *(weight.handle, symmetric, *addresses[:2], master_group, *addresses[2:4], rank, *addresses[4:]),
        torch.get_num_threads(),
    )
    return True


def read_bandwidth(size: int = 2**28, passes: int = 5) -> float:
    """Bytes per second at which PyTorch's threads read memory: of the fastest of some passes over `size` bytes.

    `InvalidInput` where there are no kernels.
    """
    return float(extension.require().read_bandwidth(size, passes, torch.get_num_threads())[0])
