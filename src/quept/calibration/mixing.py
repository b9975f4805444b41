"""Training linears beside others at a higher bit-width, as a mixed plan runs them.

The linears of a block that is trained at one bit-width alone learn to make up for each other's errors at that
bit-width. In a plan that mixes bit-widths the errors are different.
"""

from dataclasses import dataclass

import torch

from quept.calibration.block import CalibrationBlock
from quept.config import Reconstruction


@dataclass(frozen=True)
class Mixture:
    """The bit-width to run a block at, and the linears that run at another one, each with its own."""

    bits: int
    others: tuple[tuple[str, int], ...] = ()


def draw_mixture(block: CalibrationBlock, bits: int, settings: Reconstruction, generator: torch.Generator) -> Mixture:
    """Return the mixture to run a block at in place of `bits`; linears that read one tensor move together."""
    higher = [each for each in block.recipe.bits if each > bits]
    chance = settings.mixing.chance(bits, block.context.index, block.context.blocks)
    if not (chance and higher):
        return Mixture(bits)
    sets = block.context.inputs
    moved = torch.rand(len(sets), dtype=torch.float32, generator=generator) < chance
    return Mixture(
        bits, tuple((path, higher[0]) for paths, moves in zip(sets, moved, strict=True) if moves for path in paths)
    )
