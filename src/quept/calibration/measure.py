"""A block's errors against full precision, as they are reported."""

from collections.abc import Sequence

import torch

from quept.calibration.block import CalibrationBlock
from quept.calibration.objective import Objective
from quept.calibration.stream import Stream
from quept.calibration.tools import Tools
from quept.storage.manifest import BlockError

SAMPLES = 8  # on which errors are measured


def measure(
    block: CalibrationBlock, inputs: Sequence[Stream], targets: Stream, objective: Objective, tools: Tools
) -> list[BlockError]:
    """Return a frozen block's errors on the first samples at each bit-width, rounded to nearest and calibrated.

    `inputs` holds the stream of each bit group.
    """
    rows = slice(0, min(SAMPLES, tools.chunk * 2, targets.samples))
    with torch.no_grad():
        error = objective(targets.read(rows), rows)

    def one(bits: int) -> BlockError:
        replica, hidden = block.replica(), inputs[block.recipe.groups.index(bits)].read(rows)
        with torch.no_grad():  # which every thread has to say for itself
            calibrated = error(replica.run(hidden, bits)).item()
            with replica.rounded_to_nearest(bits):
                rounding = error(replica.run(hidden, bits)).item()
        return BlockError(block=block.path, bits=bits, rounding=rounding, calibrated=calibrated)

    return tools.workers.map(one, block.recipe.bits)
