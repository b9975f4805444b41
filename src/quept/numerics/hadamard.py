"""Hadamard rotations: orthogonal, fast, and without a trace of outliers (QuaRot, arXiv 2404.00456).

A Hadamard matrix has entries of one and minus one and orthogonal rows; divided by the root of its order it is a
rotation that spreads every channel evenly over all others. The matrices are constructed, not listed: Sylvester's for
powers of two, Paley's from the squares of a finite field, and Kronecker products of these. That covers the sizes of
published models with few exceptions; a size with none of its own is rotated in parts.

Multiplying by a Kronecker product is multiplying along each of its axes, so a vector of `n` channels costs
`n (f_1 + f_2 + ...)` operations for the factors `f_i`. Factors next to each other are multiplied by at once, up to
matrices of 128: a fast Walsh-Hadamard transform that makes up to seven of its steps in one matrix product. A model that
runs rotates with `quept.ops.rotate`, which has kernels.
"""

from dataclasses import dataclass
from functools import cache, lru_cache, reduce
from itertools import product
from math import isqrt, prod, sqrt

import torch
from torch import Tensor

LARGEST_FACTOR = 4096  # of Paley's matrices: 16 million entries
RADIX = 64  # of the Walsh-Hadamard transform
DENSE = 128  # up to here one product with a matrix takes less time than two with smaller ones


@dataclass(frozen=True)
class Rotation:
    """Hadamard matrices along the diagonal: one over all channels where its construction is known, else several.

    `orders` are the sizes of the parts, from the first channel on; they sum to the number of channels.
    """

    orders: tuple[int, ...]

    @classmethod
    def of(cls, size: int) -> "Rotation":
        """Return the rotation of `size` channels with the fewest parts, and of these the most even."""
        if size < 1:
            raise ValueError(f"a rotation needs at least one channel, not {size}")
        return cls(_parts(size))

    @property
    def size(self) -> int:
        """The number of channels."""
        return sum(self.orders)

    @property
    def whole(self) -> bool:
        """Whether every channel is spread over all others."""
        return len(self.orders) == 1

    def __call__(self, values: Tensor) -> Tensor:
        """Return `R v` for every vector `v` along the last dimension, `(..., size)`; differentiable.

        A linear layer with weight `(out, in)` keeps its function if its inputs and its weight are both rotated.
        `ValueError` for another size.
        """
        return self._rotated(values, inverse=False)

    def inverse(self, values: Tensor) -> Tensor:
        """Return `R^T v` for every vector `v` along the last dimension, `(..., size)`; undoes the rotation."""
        return self._rotated(values, inverse=True)

    def _rotated(self, values: Tensor, inverse: bool) -> Tensor:
        if values.shape[-1] != self.size:
            raise ValueError(f"the rotation is of {self.size} channels, the values have {values.shape[-1]}")
        if self.whole:
            return _multiply(values, self.size, inverse)
        parts = torch.split(values, list(self.orders), dim=-1)
        return torch.cat(
            [_multiply(part, order, inverse) for part, order in zip(parts, self.orders, strict=True)], dim=-1
        )


@cache
def hadamard(order: int) -> Tensor:
    """Return the Hadamard matrix `(order, order)`, int8, as the Kronecker product of its factors.

    Raises `ValueError` where no construction is known here.
    """
    found = factors(order)
    if found is None:
        raise ValueError(f"no construction of a Hadamard matrix of order {order} is known")
    matrix = torch.ones(1, 1, dtype=torch.int8)
    for factor in found:
        matrix = torch.kron(matrix, factor_matrix(factor))
    return matrix


@cache
def factors(order: int) -> tuple[int, ...] | None:
    """Return the orders of matrices whose Kronecker product has this order; None where there are none.

    Each is a power of two up to `RADIX`, or one of Paley's.
    """
    if order == 1:
        return ()
    if order & (order - 1) == 0:
        return (order,) if order <= RADIX else (RADIX, *(factors(order // RADIX) or ()))
    for divisor in range(4, min(order, LARGEST_FACTOR) + 1, 4):
        if order % divisor == 0 and divisor & (divisor - 1) and _paley_field(divisor):
            rest = factors(order // divisor)
            if rest is not None:
                return (divisor, *rest)
    return None


def _parts(size: int) -> tuple[int, ...]:
    """Return orders that sum to `size`, larger ones first."""
    if size == 0:
        return ()
    if factors(size) is not None:
        return (size,)
    if size % 4:
        return (*_parts(size - size % 4), *((2,) if size % 4 >= 2 else ()), *((1,) if size % 2 else ()))
    half = size // 2 - size // 2 % 4
    for smaller in range(half, 0, -4):
        if factors(smaller) is not None and factors(size - smaller) is not None:
            return (size - smaller, smaller)
    return (*_parts(size - half), *_parts(half))


def _multiply(values: Tensor, order: int, inverse: bool) -> Tensor:
    """Multiply every vector along the last dimension by the rotation of `order` channels, or by its inverse."""
    shape, after = values.shape, 1
    for group in reversed(_groups(order)):
        matrix = _rotation(group, values.dtype, values.device)
        matrix = matrix.T if inverse else matrix
        grouped = values.reshape(-1, len(matrix), after)
        values = grouped.squeeze(-1) @ matrix.T if after == 1 else matrix @ grouped
        after *= len(matrix)
    return values.reshape(shape)


@cache
def _groups(order: int) -> tuple[tuple[int, ...], ...]:
    """Return the factors of `order`, divided to twos and Paley's, and joined with their neighbours up to `DENSE`.

    Each pass over the values costs more than the multiplications that a smaller matrix saves.
    """
    found = factors(order)
    assert found is not None
    groups: list[tuple[int, ...]] = []
    for factor in reversed(found):
        for part in (2,) * (factor.bit_length() - 1) if factor & (factor - 1) == 0 else (factor,):
            if groups and part * prod(groups[0]) <= DENSE:
                groups[0] = (part, *groups[0])
            else:
                groups.insert(0, (part,))
    return tuple(groups)


@lru_cache(maxsize=64)
def _rotation(group: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # where it could not be used for training afterwards
        matrix = reduce(torch.kron, map(factor_matrix, group))
        return (matrix.to(torch.float64) / sqrt(len(matrix))).to(device, dtype)


@cache
def factor_matrix(order: int) -> Tensor:
    """Return one of the `factors`, int8 `(order, order)`: Sylvester's matrix for a power of two, else Paley's."""
    if order & (order - 1) == 0:
        two, matrix = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8), torch.ones(1, 1, dtype=torch.int8)
        while len(matrix) < order:
            matrix = torch.kron(matrix, two)
        return matrix
    field = _paley_field(order)
    assert field is not None
    prime, degree = field
    squares = _differences_that_are_squares(prime, degree)
    size = len(squares)
    if size % 4 == 3:  # Paley I
        matrix = torch.ones(size + 1, size + 1, dtype=torch.int8)
        matrix[1:, 0] = -1
        matrix[1:, 1:] = squares + torch.eye(size, dtype=torch.int8)
        return matrix
    conference = torch.ones(size + 1, size + 1, dtype=torch.int8)  # Paley II
    conference[0, 0] = 0
    conference[1:, 1:] = squares
    off, on = torch.tensor([[1, 1], [1, -1]]), torch.tensor([[1, -1], [-1, -1]])
    return torch.kron(conference, off.to(torch.int8)) + torch.kron(
        torch.eye(size + 1).to(torch.int8), on.to(torch.int8)
    )


@cache
def _paley_field(order: int) -> tuple[int, int] | None:
    """Return the field, as prime and degree, from which Paley's matrix of this order is made."""
    if order % 4 == 0:
        for size, remainder in ((order - 1, 3), (order // 2 - 1, 1)):
            if size % 4 == remainder and (field := _prime_power(size)):
                return field
    return None


def _prime_power(number: int) -> tuple[int, int] | None:
    """Return `(p, e)` with `number = p ** e`, `p` prime and `e` at most 3."""
    for degree in (1, 2, 3):
        root = round(number ** (1 / degree))
        if root > 1 and root**degree == number and all(root % divisor for divisor in range(2, isqrt(root) + 1)):
            return root, degree
    return None


def _differences_that_are_squares(prime: int, degree: int) -> Tensor:
    """Return 1 where `x_i - x_j` is a square in the field of `prime ** degree` elements, -1 where not, 0 where zero."""
    elements = torch.cartesian_prod(*[torch.arange(prime)] * degree).reshape(-1, degree)
    places = prime ** torch.arange(degree - 1, -1, -1)
    character = torch.full((len(elements),), -1, dtype=torch.int8)
    character[(_squared(elements, prime) * places).sum(-1)] = 1
    character[0] = 0
    difference = (elements.unsqueeze(1) - elements.unsqueeze(0)) % prime
    return character[(difference * places).sum(-1)]


def _squared(elements: Tensor, prime: int) -> Tensor:
    """Return the squares of polynomials over the integers modulo `prime`, `(n, degree)`, highest power first."""
    degree = elements.shape[1]
    squares = elements.new_zeros(len(elements), 2 * degree - 1)
    for i, j in product(range(degree), repeat=2):
        squares[:, i + j] += elements[:, i] * elements[:, j]
    modulus = torch.tensor(_irreducible(prime, degree))
    for leading in range(degree - 1):  # x ** degree = -(the rest of the modulus)
        squares[:, leading + 1 : leading + 1 + degree] -= squares[:, leading : leading + 1] * modulus
    return squares[:, degree - 1 :] % prime


def _irreducible(prime: int, degree: int) -> tuple[int, ...]:
    """Return the coefficients, but the leading one, of a polynomial without roots: up to degree 3, irreducible."""
    for rest in product(range(prime), repeat=degree):
        if degree == 1 or all(_value(rest, x, prime) for x in range(prime)):
            return rest
    raise AssertionError(f"every polynomial of degree {degree} has a root modulo {prime}")


def _value(rest: tuple[int, ...], at: int, prime: int) -> int:
    value = 1
    for coefficient in rest:
        value = (value * at + coefficient) % prime
    return value
