"""Letting linears meet what a mixed plan puts beside them: others at a higher width.

A block that is trained and fed at one width alone leans on the others being at that width: its linears make up for the
errors before them. In a plan that mixes widths those errors are others.
"""

from dataclasses import dataclass

import torch

from quept.calibration.block import CalibrationBlock
from quept.config import Reconstruction


@dataclass(frozen=True)
class Mixture:
    """A width to run a block at, and the linears that are at another one, each with its own."""

    bits: int
    others: tuple[tuple[str, int], ...] = ()


def draw_mixture(block: CalibrationBlock, bits: int, settings: Reconstruction, generator: torch.Generator) -> Mixture:
    """What a block runs at where it is to run at `bits`: linears that read one tensor move together."""
    higher = [width for width in block.recipe.bits if width > bits]
    chance = settings.mixing.chance(bits, block.context.index, block.context.blocks)
    if not (chance and higher):
        return Mixture(bits)
    sets = block.context.inputs
    moved = torch.rand(len(sets), generator=generator) < chance
    return Mixture(
        bits, tuple((path, higher[0]) for paths, moves in zip(sets, moved, strict=True) if moves for path in paths)
    )
