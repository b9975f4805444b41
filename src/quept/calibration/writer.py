"""Writing an artifact, part by part, into a workspace."""

from collections.abc import Sequence

from torch import Tensor

from quept.calibration.block import CalibrationBlock
from quept.calibration.finite import check_tensors
from quept.calibration.job import Job
from quept.calibration.outer import OuterLayers
from quept.calibration.workspace import Workspace
from quept.storage.artifact import shard_stem
from quept.storage.manifest import BlockError, Judgement, Manifest


class ArtifactWriter:
    """Writes the parts of the artifact of a job: all that is outside the blocks is part 0, the blocks follow in order.

    A block's errors are kept beside its tensors, so that a run that goes on later can report them.
    """

    def __init__(self, job: Job, workspace: Workspace, outer: OuterLayers) -> None:
        self.job, self.workspace, self.outer = job, workspace, outer
        self.blocks = len(job.architecture.block_list(job.model))

    def write_surroundings(self) -> None:
        """Write all that is not a block. This comes first, so that what cannot be written fails at once."""
        self.write_outer()
        self.workspace.write_files(self.job.files)

    def write_outer(self) -> None:
        """Write the tensors outside the blocks, again where more of their layers have been quantized."""
        self.workspace.write(self._stem(-1), self.outer.tensors())

    def has(self, index: int) -> bool:
        """Return whether a block is finished."""
        return self.workspace.has(self._stem(index))

    def read(self, index: int) -> tuple[dict[str, Tensor], list[BlockError]]:
        """Return the tensors and the errors of a finished block."""
        part = self._stem(index)
        tensors, note = self.workspace.read(part)
        return tensors, [BlockError.parse(error, origin=f"The note in {part}") for error in note]

    def write(self, index: int, block: CalibrationBlock, errors: Sequence[BlockError]) -> None:
        """Write a frozen block and its errors."""
        tensors = block.tensors()
        check_tensors(tensors)
        self.workspace.write(self._stem(index), tensors, note=[error.model_dump() for error in errors])

    def publish(self, judgement: Judgement) -> Manifest:
        """Write the manifest, and give the artifact its name."""
        job = self.job
        manifest = Manifest(
            architecture=job.architecture.model_type,
            dtype=job.stored_dtype,
            recipe=job.recipe,
            provenance=job.provenance,
            block_errors=judgement.blocks,
            prediction_errors=judgement.predictions,
            files=self.workspace.checked_files(),
        )
        self.workspace.publish(manifest)
        return manifest

    def _stem(self, index: int) -> str:
        return shard_stem(index + 1, self.blocks)
