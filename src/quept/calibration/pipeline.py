"""The method, top to bottom.

`calibrate` opens the model, captures what flows into its first block, and takes the blocks in order: advance the
full-precision stream, smooth, make the linears elastic, round their weights to what is stored, reconstruct, advance
the quantized streams, write the block to disk. One block is on the compute device at a time. A block that is already
on disk is not trained again: it is read back and the streams pass through it, which is what lets an interrupted run go
on bit for bit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quept.calibration.block import CalibrationBlock
from quept.calibration.capture import BlockCall, ModelHead, ModelStem
from quept.calibration.clock import Clock
from quept.calibration.forward import CompiledForward, EagerForward, ForwardPass
from quept.calibration.job import Job, prepare
from quept.calibration.measure import measure
from quept.calibration.merge import advance
from quept.calibration.objective import Objective, output_error, prediction_error
from quept.calibration.outer import OuterLayers
from quept.calibration.progress import Progress, Report, Silent
from quept.calibration.ranges import ROWS, init_ranges, observed_linears
from quept.calibration.reconstruct import count_steps, reconstruct, trained_tokens
from quept.calibration.samples import source_of
from quept.calibration.stream import Stream, StreamStore
from quept.calibration.workers import WorkerPool
from quept.calibration.workspace import Workspace
from quept.config import Recipe
from quept.devices import multiplies_bfloat16
from quept.models import BlockContext
from quept.storage.artifact import shard_stem
from quept.storage.manifest import BlockError, Manifest

TOKENS_PER_PASS = 4096  # tokens in one forward pass that needs no gradients
DEFAULT_STREAM_MEMORY = 8 * 2**30


def calibrate(
    model: Any,
    output: str | Path,
    *,
    data: str | Path | Tensor,
    recipe: str | Path | Recipe | None = None,
    tokenizer: Any = None,
    image_processor: Any = None,
    samples: int | None = None,
    sequence_length: int | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    compiled: bool | None = None,
    strict: bool = False,
    stream_memory: int = DEFAULT_STREAM_MEMORY,
    progress: Progress | None = None,
) -> Report:
    """Calibrate a model once for every width of the recipe, and write the artifact.

    Args:
        model: a Hugging Face model directory or Hub name, or a transformers model (then give its tokenizer too).
        output: directory of the artifact; must not exist, or be empty. While the run lasts, its work is in
            `<output>.partial`.
        data: for a causal language model a text file or data set name (see `quept.data`), or token windows
            `(samples, tokens)`; for an image classifier a folder, file or data set of images, or images as the
            model takes them, `(samples, channels, height, width)`.
        recipe: a shipped recipe's name, a TOML file, or a `Recipe`; None is `best`, for images `vision-best`.
        tokenizer, image_processor: what prepares the data, where `model` is not a path.
        samples, sequence_length: how much data, instead of the recipe's; `sequence_length` in tokens.
        seed: of the data choice, the adapters and the sampling. Same seed, same machine: same artifact, byte for byte.
        device: `auto`, `cpu` or `cuda`.
        compiled: whether training runs through `torch.compile`; None decides by the amount of work, on a CPU.
        strict: an image that cannot be read is an error, instead of left out.
        resume: go on with an interrupted run of the same settings.
        stream_memory: bytes of hidden states held in memory; beyond it they live in memory-mapped files.
        progress: told what happens.

    Raises `InvalidInput` for wrong settings or too little data, `CalibrationFailed` for non-finite weights or
    losses, `QueptError` when the disk refuses; none leaves a half-written output.
    """
    progress = progress or Silent()
    clock = Clock(progress.stage)
    workspace = Workspace(output)
    workspace.check_free(resume=resume)
    with clock("opening"):
        job = prepare(
            model,
            tokenizer or image_processor,
            data,
            recipe,
            samples,
            sequence_length,
            seed,
            device,
            compiled,
            strict,
            progress.note,
        )
    if manifest := workspace.finished(job.fingerprint):
        progress.note(f"{output} is already complete.")
        return Report(Path(output), manifest)
    workspace.open(job.fingerprint)
    try:
        run = _Run(job, workspace, StreamStore(stream_memory, workspace.folder, job.device), clock, progress)
        with clock("writing"):
            run.write_surroundings()
        block_errors = run.calibrate_blocks()
        with clock("writing"):
            manifest = run.publish(block_errors)
    except BaseException:
        workspace.abandon_if_empty()
        raise
    return Report(
        Path(output),
        manifest,
        clock.seconds,
        clock.total,
        run.trained_tokens,
        run.store.in_memory + run.store.in_files,
    )


@dataclass
class _Run:
    """One pass over the blocks."""

    job: Job
    workspace: Workspace
    store: StreamStore
    clock: Clock
    progress: Progress
    trained_tokens: int = 0
    tokens: int = 1  # of a sample, in front of the blocks

    def __post_init__(self) -> None:
        self.forward: ForwardPass = (
            CompiledForward(self.progress.note) if self.job.provenance.compiled else EagerForward()
        )
        self.outer = OuterLayers(self.job)
        self.workers = WorkerPool()
        self.training = self.recipe.reconstruction
        if not multiplies_bfloat16(self.job.device):
            self.training = self.training.updated(bfloat16_bits=())

    @property
    def recipe(self) -> Recipe:
        """The settings."""
        return self.job.recipe

    @property
    def chunk(self) -> int:
        """Samples in one forward pass that needs no gradients."""
        return max(1, TOKENS_PER_PASS // self.tokens)

    def calibrate_blocks(self) -> list[BlockError]:
        """Take all blocks in order; the errors of each at each width."""
        job = self.job
        blocks = job.architecture.block_list(job.model)
        with self.clock("capture"):
            stem = ModelStem(job.model, job.architecture, job.compute_dtype)
            calls = stem.calls(job.samples)
            full_precision = self._enter(stem)
            quantized = self._quantized_streams(stem, full_precision)
            del stem
        self.progress.start(len(blocks), count_steps(full_precision.samples, self.recipe.reconstruction))
        self.workers = self._worker_pool(blocks)
        with self.workers:
            errors = self._calibrate_each(blocks, calls, full_precision, quantized)
        self._place_exit(full_precision)
        return errors

    def _worker_pool(self, blocks: nn.ModuleList) -> WorkerPool:
        """What runs side by side: as many bit groups as train, if the memory holds what a step keeps of each.

        For the backward pass that is about thirty values of the hidden size per token, and per weight nine bytes, of
        which four are the derived weight.
        """
        recipe, config = self.recipe, self.job.model.config
        weights = max(sum(parameter.numel() for parameter in block.parameters()) for block in blocks)
        tokens = self.tokens * min(recipe.reconstruction.batch_size, len(self.job.samples))
        hidden = weights**0.5 if (size := getattr(config, "hidden_size", None)) is None else size
        kept = int(30 * 4 * tokens * hidden) + 9 * weights
        return WorkerPool.of(self.job.device, sum(map(bool, recipe.trained_groups)), kept, int(tokens * hidden))

    def _calibrate_each(
        self,
        blocks: nn.ModuleList,
        calls: list[BlockCall],
        full_precision: Stream,
        quantized: list[Stream],
    ) -> list[BlockError]:
        job, errors = self.job, list[BlockError]()
        for index, call in enumerate(calls):
            context = BlockContext.of(job.architecture, job.model, index)
            block = CalibrationBlock(blocks[index], context, self.recipe, call, job.device, job.compute_dtype)
            if context.is_first:
                for transform in block.transforms:
                    for note in transform.notes(block.module, context):
                        self.progress.note(note)
            errors += self._calibrate_block(index, block, full_precision, quantized)
            if index + 1 < len(blocks):
                with self.clock("quantized stream"):
                    advance(
                        block,
                        quantized,
                        self.store,
                        self.recipe.groups,
                        self.recipe.merging,
                        job.generator(index, "merging"),
                        self.chunk,
                        self.training,
                        self.workers,
                    )
        return errors

    def _calibrate_block(
        self, index: int, block: CalibrationBlock, full_precision: Stream, quantized: list[Stream]
    ) -> list[BlockError]:
        """Train one block, or read it back; afterwards `full_precision` holds its outputs, which are the targets."""
        blocks = len(self.job.architecture.block_list(self.job.model))
        stem = shard_stem(index + 1, blocks)
        steps = count_steps(full_precision.samples, self.recipe.reconstruction)
        for transform in block.transforms:
            if not transform.observed_inputs(block.context):
                block.fold(transform, {})
        if self.workspace.has(stem):
            with block.observed((), 1):  # with the same operations as when the block was trained
                self._advance_full_precision(block, full_precision)
            tensors, note = self.workspace.read(stem)
            block.load_tensors(tensors)
            self.progress.step(index, steps, float("nan"))
            return [BlockError.parse(error, origin=f"The note in {stem}") for error in note]
        self._prepare(block, full_precision)
        generator = self.job.generator(index, "reconstruction")
        for linear in block.linears.values():
            linear.reset_adapter(generator)
        trained, reported = self._objectives(last=index + 1 == blocks)
        reconstruct(
            block,
            quantized,
            full_precision,
            self.recipe.trained_groups,
            self.training,
            trained,
            self.forward,
            generator,
            self.clock,
            lambda step, _, loss: self.progress.step(index, step, loss),
            self.workers,
        )
        block.freeze()
        self.trained_tokens += trained_tokens(self.recipe, self.tokens)
        with self.clock("measuring"):
            errors = measure(block, quantized, full_precision, reported, self.chunk, self.workers)
        with self.clock("writing"):
            self.workspace.write(stem, block.tensors(), note=[error.model_dump() for error in errors])
        return errors

    def _prepare(self, block: CalibrationBlock, full_precision: Stream) -> None:
        """Advance the full-precision stream, fold what had to see it, and place the ranges."""
        watching = [transform for transform in block.transforms if transform.observed_inputs(block.context)]
        watched = {
            path for transform in watching for path in transform.observed_inputs(block.context)
        } | observed_linears(block)
        rows = ROWS if self.recipe.activations.range == "tensor" else self.recipe.smoothing.tokens
        passes = -(-full_precision.samples // self.chunk)
        with block.observed(watched, max(1, rows // passes)) as inputs:
            self._advance_full_precision(block, full_precision)
        for transform in watching:
            with self.clock("transforms"), self.workers.undivided():
                block.fold(transform, inputs)
        block.round_to_stored()
        with self.clock("placing ranges"):
            init_ranges(block, inputs, self.workers)

    def _place_exit(self, full_precision: Stream) -> None:
        """Find the ranges of the layers behind the blocks, and write all that is outside the blocks once more."""
        if not self.outer.exist:
            return
        with self.clock("capture"), torch.no_grad():
            head = self._exit()

            def run() -> None:
                for rows in full_precision.chunks(self.chunk):
                    head(full_precision.read(rows))

            self.outer.quantize(head.model, run)
        with self.clock("writing"):
            self._write_rest()

    def _exit(self) -> ModelHead:
        job = self.job
        return ModelHead(job.model, job.architecture, job.compute_dtype, job.device, job.samples[:1])

    def _objectives(self, last: bool) -> tuple[Objective, Objective]:
        """What a block's training lowers, and what is reported of it: the same, without the text's own share."""
        job, settings = self.job, self.recipe.reconstruction
        if not (last and settings.last_block_loss == "kl"):
            return (output_error(settings.loss),) * 2
        head = self._exit()
        return prediction_error(head, job.samples, settings.label_weight), prediction_error(head)

    @torch.no_grad()
    def _advance_full_precision(self, block: CalibrationBlock, stream: Stream) -> None:
        with self.clock("full-precision stream"), self.workers.undivided():
            self.store.rewrite(stream, self.chunk, lambda rows: block.run(stream.read(rows)))

    def _enter(self, stem: ModelStem, stream: Stream | None = None) -> Stream:
        """The stream of the first block's inputs; `stream` is filled with them if it is given."""
        if stream is None:
            _, self.tokens, hidden = stem.hidden_states(self.job.samples[:1]).shape
            stream = self.store.empty(len(self.job.samples), self.tokens, hidden, self.job.compute_dtype)
        for rows in stream.chunks(self.chunk):
            stream.write(rows, stem.hidden_states(self.job.samples[rows]))
        return stream

    def _quantized_streams(self, stem: ModelStem, start: Stream) -> list[Stream]:
        """One stream per bit group, high to low: a stream each where nothing is merged, else one for all.

        They start with what comes out of the layers in front of the blocks at the width that these keep.
        """
        first = self.store.copy(start, self.chunk)
        if self.outer.quantize(stem.part, lambda: self._enter(stem, first)):
            self.outer.run_rounded()
            self._enter(stem, first)
        if self.recipe.merging.strategy == "per-group":
            return [first, *(self.store.copy(first, self.chunk) for _ in self.recipe.groups.groups[1:])]
        return [first] * len(self.recipe.groups)

    def write_surroundings(self) -> None:
        """Write all that is not a block. This comes first, so that what cannot be written fails at once."""
        job, folder = self.job, self.workspace.folder
        self._write_rest()
        job.config.save_pretrained(folder)
        if getattr(job.model, "generation_config", None) is not None:
            # Not save_pretrained: it refuses settings that many published checkpoints have.
            job.model.generation_config.to_json_file(folder / "generation_config.json")
        if job.processor is not None:
            source_of(job.model.config).save_processor(job.processor, folder)

    def _write_rest(self) -> None:
        blocks = len(self.job.architecture.block_list(self.job.model))
        self.workspace.write(shard_stem(0, blocks), self.outer.tensors())

    def publish(self, block_errors: list[BlockError]) -> Manifest:
        """Write the manifest, and give the artifact its name."""
        job = self.job
        manifest = Manifest(
            architecture=job.architecture.model_type,
            dtype=job.stored_dtype,
            recipe=self.recipe,
            provenance=job.provenance,
            block_errors=tuple(block_errors),
            files=self.workspace.files(),
        )
        self.workspace.publish(manifest)
        return manifest
