"""How the products of a loaded model are computed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Execution:
    """Which products an elastic linear may use; where one is not possible, it multiplies dense floats.

    Attributes:
        integers: where weights and activations are both rounded, multiply their codes.
        packed: keep weights packed at their width and multiply them as they are, instead of deriving dense ones. For
            a few tokens at a time, activations are then rounded to eight bits on the way, unless `exact`.
        exact: multiply packed weights by the activations as they come.
    """

    integers: bool = False
    packed: bool = False
    exact: bool = False
