"""The method, top to bottom.

`calibrate` opens the model, captures what flows into its first block, and takes the blocks in order:

    targets    the full-precision block's outputs on the full-precision stream
    prepare    fold transforms into the weights, round the master to what is stored, find where ranges start
    train      lower the error to the targets at every bit-width, on the quantized streams
    freeze     keep what was learned in the form that is stored
    judge      keep of it what is better than plain rounding on held-out samples, write the block to disk
    advance    run the quantized streams through the frozen block

One block is on the compute device at a time. A block that is already on disk is not trained again: it is read back and
the streams pass through it, which is what lets an interrupted run go on bit for bit.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quept.calibration.block import CalibrationBlock
from quept.calibration.capture import BlockCall, ModelHead, ModelStem
from quept.calibration.clock import Clock
from quept.calibration.finite import check_full_precision, checked_errors, checked_output
from quept.calibration.forward import CompiledForward, EagerForward
from quept.calibration.held_out import HeldOut, judged
from quept.calibration.job import DataRequest, Job, Request, Source, prepare
from quept.calibration.merge import advance
from quept.calibration.objective import Objective, output_error, prediction_error
from quept.calibration.outer import OuterLayers
from quept.calibration.progress import Progress, Report, Silent
from quept.calibration.ranges import ROWS, init_ranges, observed_linears
from quept.calibration.reconstruct import Training, count_steps, reconstruct, trained_tokens
from quept.calibration.stream import Stream, StreamStore
from quept.calibration.tools import Tools
from quept.calibration.workers import WorkerPool
from quept.calibration.workspace import Workspace
from quept.calibration.writer import ArtifactWriter
from quept.config import Recipe
from quept.devices import multiplies_bfloat16
from quept.models import Architecture, BlockContext
from quept.storage.manifest import BlockError, Judgement

TOKENS_PER_PASS = 4096  # tokens in one forward pass that needs no gradients
DEFAULT_STREAM_MEMORY = 8 * 2**30


def calibrate(
    model: Any,
    output: str | Path,
    *,
    data: str | Path | Tensor,
    recipe: str | Path | Recipe | None = None,
    architecture: Architecture | None = None,
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
    """Calibrate a model once for every bit-width of the recipe, and write the artifact.

    The arguments are those of `quept.calibrate`, which can change settings of the recipe on top.

    Raises `InvalidInput` for wrong settings or too little data, `CalibrationFailed` for non-finite weights or
    losses, `QueptError` when the disk refuses; none leaves a half-written output.
    """
    source = Source(model, tokenizer or image_processor, architecture)
    wanted = DataRequest(data, samples, sequence_length, strict)
    request = Request(source, wanted, recipe, seed, device, compiled)
    return run(request, Path(output), resume, stream_memory, progress or Silent())


def run(request: Request, output: Path, resume: bool, stream_memory: int, progress: Progress) -> Report:
    """Fulfil a request; see `calibrate`."""
    clock = Clock(progress.stage)
    workspace = Workspace(output, progress.note)
    workspace.check_free(resume=resume)
    with clock("opening"):
        job = prepare(request, progress.note)
        check_full_precision(job)
    if manifest := workspace.finished(job.fingerprint):
        progress.note(f"{output} is already complete.")
        return Report(output, manifest)
    workspace.open(job.fingerprint)
    try:
        streams = StreamStore(stream_memory, workspace.folder, job.device)
        blocks = _Run(job, workspace, streams, clock, progress)
        with clock("writing"):
            blocks.writer.write_surroundings()
        judgement = blocks.calibrate()
        with clock("writing"):
            manifest = blocks.writer.publish(judgement)
    except BaseException:
        workspace.abandon_if_empty()
        raise
    return Report(output, manifest, clock.seconds, clock.total, blocks.trained_tokens, streams.held)


class _Run:
    """One pass over the blocks."""

    def __init__(self, job: Job, workspace: Workspace, streams: StreamStore, clock: Clock, progress: Progress) -> None:
        self.job, self.recipe, self.progress = job, job.recipe, progress
        forward = CompiledForward(progress.note) if job.provenance.compiled else EagerForward()
        self.tools = Tools(streams, clock, forward, WorkerPool())
        self.outer = OuterLayers(job)
        self.writer = ArtifactWriter(job, workspace, self.outer)
        self.settings = self.recipe.reconstruction
        if not multiplies_bfloat16(job.device):
            self.settings = self.settings.updated(bfloat16_bits=())
        self.blocks = job.architecture.block_list(job.model)
        self.held_out: HeldOut
        self.tokens = 1  # of a sample, in front of the blocks
        self.trained_tokens = 0

    def calibrate(self) -> Judgement:
        """Take all blocks in order; return what is kept of each at each bit-width."""
        with self.tools.clock("capture"):
            stem = ModelStem(self.job.model, self.job.architecture, self.job.compute_dtype)
            calls = stem.calls(self.job.samples)
            full_precision, held_out = self._enter(stem, self.job.samples), self._enter(stem, self.job.held_out)
            quantized = self._quantized_streams(stem, full_precision)
            self.held_out = HeldOut(held_out, self._enter(stem, self.job.held_out), self.recipe, self.tools)
            del stem
        self.progress.start(len(self.blocks), count_steps(full_precision.samples, self.settings))
        self.tools.workers = self._workers()
        errors: list[BlockError] = []
        with self.tools.workers:
            for index, call in enumerate(calls):
                block = self._open_block(index, call)
                full_precision, decisions = self._calibrate_block(index, block, full_precision, quantized)
                errors += decisions
                with self.tools.clock("judging"):
                    self.held_out.advance(block)
                if index + 1 < len(self.blocks):
                    with self.tools.clock("quantized stream"):
                        generator = self.job.generator(index, "merging")
                        quantized = advance(block, quantized, self.settings, generator, self.tools)
        with self.tools.clock("judging"):
            predictions = self.held_out.predictions(prediction_error(self._head()))
            judgement = judged(errors, predictions, self.recipe)
        for text in judgement.notes():
            self.progress.note(text)
        self._quantize_head(full_precision)
        return judgement

    def _calibrate_block(
        self, index: int, block: CalibrationBlock, full_precision: Stream, quantized: list[Stream]
    ) -> tuple[Stream, list[BlockError]]:
        """Train one block, or read it back; return its full-precision outputs and what is kept of it."""
        for transform in block.transforms:
            if not transform.observed_inputs(block.context):
                block.fold(transform, {})
        if self.writer.has(index):
            return self._read_block(index, block, full_precision)
        generator = self.job.generator(index, "reconstruction")
        targets = self._prepare(block, full_precision, generator)
        objective, judging = self._objectives(last=index + 1 == len(self.blocks))
        training = Training(
            self.recipe.trained_groups,
            self.settings,
            objective,
            generator,
            lambda step, _, loss: self.progress.step(index, step, loss),
        )
        reconstruct(block, quantized, targets, training, self.tools)
        block.freeze()
        self.trained_tokens += trained_tokens(self.recipe, self.tokens)
        with self.tools.clock("judging"):
            decisions = checked_errors(self.held_out.judge(block, judging), block)
        block.keep(decisions)
        with self.tools.clock("writing"):
            self.writer.write(index, block, decisions)
        return targets, decisions

    def _prepare(self, block: CalibrationBlock, full_precision: Stream, generator: torch.Generator) -> Stream:
        """Fold the transforms that had to see the block's inputs, and find where ranges start; return the targets."""
        observing = [each for each in block.transforms if each.observed_inputs(block.context)]
        observed = {path for each in observing for path in each.observed_inputs(block.context)}
        many = self.recipe.activations.range == "tensor" or self.recipe.store.master_bits is not None
        rows = ROWS if many else self.recipe.smoothing.tokens
        passes = -(-full_precision.samples // self.tools.chunk)
        with block.observed(observed | observed_linears(block), max(1, rows // passes)) as inputs:
            targets = self._targets(block, full_precision)
        self._run_held_out(block)
        for transform in observing:
            with self.tools.clock("transforms"), self.tools.workers.undivided():
                block.fold(transform, inputs)
        block.round_to_stored(inputs)
        with self.tools.clock("placing ranges"):
            init_ranges(block, inputs, generator, self.tools.workers)
        return targets

    @torch.no_grad()
    def _targets(self, block: CalibrationBlock, full_precision: Stream) -> Stream:
        """Return the block's outputs on the full-precision stream, which may not be read any more."""
        with self.tools.clock("full-precision stream"), self.tools.workers.undivided():
            return self.tools.streams.replace(
                full_precision, self.tools.chunk, lambda rows: checked_output(block, full_precision.read(rows))
            )

    def _read_block(
        self, index: int, block: CalibrationBlock, full_precision: Stream
    ) -> tuple[Stream, list[BlockError]]:
        """Read back a block that an interrupted run has finished."""
        with block.observed((), 1):  # with the same operations as when the block was trained
            targets = self._targets(block, full_precision)
        self._run_held_out(block)
        tensors, decisions = self.writer.read(index)
        block.load_tensors(tensors)
        block.keep(decisions)
        self.progress.step(index, count_steps(targets.samples, self.settings), float("nan"))
        return targets, decisions

    def _run_held_out(self, block: CalibrationBlock) -> None:
        with self.tools.clock("judging"):
            self.held_out.run_exact(block)

    def _objectives(self, last: bool) -> tuple[Objective, Objective]:
        """Return what a block's training lowers, and what judges it: at the last block, the predictions."""
        output = output_error(self.settings.loss)
        if not last:
            return output, output
        head = self._head()
        if self.settings.last_block_loss != "kl":
            return output, prediction_error(head)
        return prediction_error(head, self.job.samples, self.settings.label_weight), prediction_error(head)

    def _open_block(self, index: int, call: BlockCall) -> CalibrationBlock:
        job = self.job
        context = BlockContext.of(job.architecture, job.model, index, self.recipe)
        block = CalibrationBlock(self.blocks[index], context, self.recipe, call, job.device, job.compute_dtype)
        if context.is_first:
            for transform in block.transforms:
                for note in transform.notes(block.module, context):
                    self.progress.note(note)
        return block

    def _workers(self) -> WorkerPool:
        """Return threads for as many bit groups as train, if the memory holds what a step keeps of each.

        For the backward pass that is about thirty values of the hidden size per token, and per weight nine bytes, of
        which four are the derived weight.
        """
        weights = max(sum(parameter.numel() for parameter in block.parameters()) for block in self.blocks)
        tokens = self.tokens * min(self.settings.batch_size, len(self.job.samples))
        hidden = getattr(self.job.model.config, "hidden_size", None) or weights**0.5
        kept = int(30 * 4 * tokens * hidden) + 9 * weights
        return WorkerPool.of(self.job.device, sum(map(bool, self.recipe.trained_groups)), kept, int(tokens * hidden))

    def _enter(self, stem: ModelStem, samples: Tensor, stream: Stream | None = None) -> Stream:
        """Return the stream of the first block's inputs; `stream` is filled with them if it is given."""
        if stream is None:
            _, self.tokens, hidden = stem.hidden_states(samples[:1]).shape
            self.tools.chunk = max(1, TOKENS_PER_PASS // self.tokens)
            stream = self.tools.streams.empty(len(samples), self.tokens, hidden, self.job.compute_dtype)
        for rows in stream.chunks(self.tools.chunk):
            stream.write(rows, stem.hidden_states(samples[rows]))
        return stream

    def _quantized_streams(self, stem: ModelStem, start: Stream) -> list[Stream]:
        """Return one stream per bit group, high to low: one each where nothing is merged, else one for all.

        They start with the outputs of the layers in front of the blocks at the bit-width that these keep.
        """
        copy, chunk = self.tools.streams.copy, self.tools.chunk
        first = copy(start, chunk)
        if self.outer.quantize(stem.part, lambda: self._enter(stem, self.job.samples, first)):
            self.outer.run_rounded()
            self._enter(stem, self.job.samples, first)
        if self.recipe.merging.strategy == "per-group":
            return [first, *(copy(first, chunk) for _ in self.recipe.groups.groups[1:])]
        return [first] * len(self.recipe.groups)

    def _head(self) -> ModelHead:
        job = self.job
        return ModelHead(job.model, job.architecture, job.compute_dtype, job.device, job.samples[:1])

    def _quantize_head(self, full_precision: Stream) -> None:
        """Find the ranges of the layers behind the blocks, and write all that is outside the blocks once more."""
        if not self.outer.exist:
            return
        with self.tools.clock("capture"), torch.no_grad():
            head = self._head()

            def run() -> None:
                for rows in full_precision.chunks(self.tools.chunk):
                    head(full_precision.read(rows))

            self.outer.quantize(head.model, run)
        with self.tools.clock("writing"):
            self.writer.write_outer()
