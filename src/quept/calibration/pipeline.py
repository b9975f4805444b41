"""The method, top to bottom.

`calibrate` opens the model, captures what flows into its first block, and takes the blocks in order: advance the
full-precision stream, smooth, make the linears elastic, reconstruct, advance the quantized streams, write the block
to disk. One block is on the compute device at a time. A block that is already on disk is not trained again: it is
read back and the streams pass through it, which is what lets an interrupted run go on bit for bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quept.architectures import Place
from quept.calibration.block import CalibrationBlock
from quept.calibration.capture import Entrance, Exit
from quept.calibration.clock import Clock
from quept.calibration.job import Job, prepare
from quept.calibration.merge import advance
from quept.calibration.objective import Objective, output_error, prediction_error
from quept.calibration.passes import CompiledPass, Pass, PlainPass
from quept.calibration.progress import Progress, Report, Silent
from quept.calibration.reconstruct import count_steps, expected_draws, reconstruct, trained_tokens
from quept.calibration.stream import Stream, StreamStore
from quept.calibration.workspace import Workspace
from quept.devices import multiplies_bfloat16
from quept.nn import stored_tensors
from quept.nn.elastic import WHOLE
from quept.spec import Recipe
from quept.storage.artifact import shard_stem
from quept.storage.manifest import BlockError, Manifest

TOKENS_PER_PASS = 4096  # tokens in one forward pass that needs no gradients
MEASURED_SAMPLES = 8  # samples on which a block's errors are reported
DEFAULT_STREAM_MEMORY = 8 * 2**30


def calibrate(
    model: Any,
    output: str | Path,
    *,
    data: str | Path | Tensor,
    recipe: str | Path | Recipe = "best",
    tokenizer: Any = None,
    samples: int | None = None,
    sequence_length: int | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    compiled: bool | None = None,
    stream_memory: int = DEFAULT_STREAM_MEMORY,
    progress: Progress | None = None,
) -> Report:
    """Calibrate a causal language model once for every width of the recipe, and write the artifact.

    Args:
        model: a Hugging Face model directory or Hub name, or a transformers model (then give its tokenizer too).
        output: directory of the artifact; must not exist, or be empty. While the run lasts, its work is in
            `<output>.partial`.
        data: a text file or data set name (see `quept.data`), or token windows `(samples, tokens)`.
        recipe: a shipped recipe's name, a TOML file, or a `Recipe`.
        tokenizer: the tokenizer, where `model` is not a path.
        samples, sequence_length: how much data, instead of the recipe's; `sequence_length` in tokens.
        seed: of the data choice, the adapters and the sampling. Same seed, same machine: same artifact, byte for byte.
        device: `auto`, `cpu` or `cuda`.
        compiled: whether training runs through `torch.compile`; None decides by the amount of work, on a CPU.
        resume: go on with an interrupted run of the same settings.
        stream_memory: bytes of hidden states held in memory; beyond it they live in memory-mapped files.
        progress: told what happens.

    Raises `InvalidInput` for wrong settings or too little data, `CalibrationFailed` for non-finite weights or
    losses, `QueptError` when the disk refuses; none leaves a half-written output.
    """
    clock, progress = Clock(), progress or Silent()
    workspace = Workspace(output)
    workspace.check_free(resume=resume)
    with clock("opening"):
        job = prepare(model, tokenizer, data, recipe, samples, sequence_length, seed, device, compiled, progress.note)
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

    def __post_init__(self) -> None:
        self.forward: Pass = CompiledPass(self.progress.note) if self.job.provenance.compiled else PlainPass()
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
        return max(1, TOKENS_PER_PASS // self.job.windows.shape[1])

    def calibrate_blocks(self) -> list[BlockError]:
        """Take all blocks in order; the errors of each at each width."""
        job = self.job
        blocks = job.architecture.block_list(job.model)
        with self.clock("capture"):
            entrance = Entrance(job.model, job.architecture, job.compute_dtype)
            calls = entrance.calls(job.windows)
            full_precision = self._enter(entrance)
            quantized = self._quantized_streams(full_precision)
            del entrance
        self.progress.start(len(blocks), count_steps(full_precision.samples, self.recipe.reconstruction))
        errors: list[BlockError] = []
        for index, call in enumerate(calls):
            place = Place(job.architecture, job.model.config, index, len(blocks))
            block = CalibrationBlock(blocks[index], place, self.recipe, call, job.device, job.compute_dtype)
            if place.is_first:
                for transform in block.transforms:
                    for note in transform.notes(block.module, place):
                        self.progress.note(note)
            errors += self._calibrate_block(index, block, full_precision, quantized)
            if index + 1 < len(blocks):
                with self.clock("quantized stream"):
                    advance(
                        block,
                        quantized,
                        self.recipe.groups,
                        self.recipe.merging,
                        job.generator(index, "merging"),
                        self.chunk,
                        self.training.bfloat16_bits,
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
            if not transform.watches(block.place):
                block.fold(transform, {})
        if self.workspace.has(stem):
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
            self.recipe.groups,
            self.training,
            trained,
            self.forward,
            generator,
            self.clock,
            lambda step, _, loss: self.progress.step(index, step, loss),
        )
        self.trained_tokens += trained_tokens(self.recipe, self.job.windows.shape[1])
        with self.clock("measuring"):
            errors = self._measure(block, full_precision, quantized, reported)
        with self.clock("writing"):
            self.workspace.write(stem, block.tensors(), note=[error.model_dump() for error in errors])
        return errors

    def _prepare(self, block: CalibrationBlock, full_precision: Stream) -> None:
        """Advance the full-precision stream, fold what had to see it, and place the ranges."""
        watching = [transform for transform in block.transforms if transform.watches(block.place)]
        watched = {path for transform in watching for path in transform.watches(block.place)}
        if self.recipe.reconstruction.clipping_start == "search":
            watched |= set(block.linears)
        passes = -(-full_precision.samples // self.chunk)
        observed = block.observed(watched, max(1, self.recipe.smoothing.tokens // passes))
        with observed as inputs, block.key_values.measuring_center():
            self._advance_full_precision(block, full_precision)
        for transform in watching:
            with self.clock("transforms"):
                block.fold(transform, inputs)
        block.round_to_stored()
        with self.clock("placing ranges"), torch.no_grad():
            self._place_ranges(block, inputs)

    def _place_ranges(self, block: CalibrationBlock, inputs: Mapping[str, Tensor]) -> None:
        """Set where each width's clipping starts; widths that are not trained keep their whole range."""
        start = self.recipe.reconstruction.clipping_start
        draws = expected_draws(self.recipe.groups, self.recipe.reconstruction, 1)
        for path, linear in block.linears.items():
            for bits in self.recipe.bits:
                if not draws[bits]:
                    linear.reset_clipping(bits, WHOLE)
                elif start == "search":
                    linear.search_clipping(bits, linear.multiplied(inputs[path]).square().mean(0))
                else:
                    linear.reset_clipping(bits, start)
        for each in block.inputs:
            readers = {path: linear for path, linear in block.linears.items() if linear.input is each}
            for bits in self.recipe.activations.bits:
                if start == "search":
                    sample = next(linear.multiplied(inputs[path]) for path, linear in readers.items())
                    weights = torch.cat([linear.weight.float() for linear in readers.values()])
                    each.search_clipping(bits, sample, weights.square().sum(0))
                else:
                    each.reset_clipping(bits, start)

    def _objectives(self, last: bool) -> tuple[Objective, Objective]:
        """What a block's training lowers, and what is reported of it: the same, without the text's own share."""
        job, settings = self.job, self.recipe.reconstruction
        if not (last and settings.last_block_loss == "kl"):
            return (output_error(settings.loss),) * 2
        leave = Exit(job.model, job.architecture, job.compute_dtype, job.device)
        return prediction_error(leave, job.windows, settings.text_share), prediction_error(leave)

    @torch.no_grad()
    def _advance_full_precision(self, block: CalibrationBlock, stream: Stream) -> None:
        with self.clock("full-precision stream"):
            for rows in stream.chunks(self.chunk):
                stream.write(rows, block.run(stream.read(rows)))

    def _measure(
        self, block: CalibrationBlock, targets: Stream, quantized: list[Stream], objective: Objective
    ) -> list[BlockError]:
        """The block's errors on the first samples, rounded to nearest and calibrated."""
        rows = slice(0, min(MEASURED_SAMPLES, self.chunk * 2, targets.samples))
        errors = []
        with torch.no_grad():
            error = objective(targets.read(rows), rows)
            for bits in self.recipe.bits:
                hidden = quantized[self.recipe.groups.index(bits)].read(rows)
                calibrated = error(block.run(hidden, bits)).item()
                with block.rounded_to_nearest(bits):
                    rounding = error(block.run(hidden, bits)).item()
                errors.append(BlockError(block=block.path, bits=bits, rounding=rounding, calibrated=calibrated))
        return errors

    def _enter(self, entrance: Entrance) -> Stream:
        """The stream of the first block's inputs."""
        windows = self.job.windows
        hidden = entrance.hidden_states(windows[:1])
        stream = self.store.empty(windows.shape[0], windows.shape[1], hidden.shape[-1], self.job.compute_dtype)
        for rows in stream.chunks(self.chunk):
            stream.write(rows, entrance.hidden_states(windows[rows]))
        return stream

    def _quantized_streams(self, start: Stream) -> list[Stream]:
        """One stream per bit group, high to low: a stream each where nothing is merged, else one for all."""
        if self.recipe.merging.strategy == "per-group":
            return [self.store.copy(start, self.chunk) for _ in self.recipe.groups.groups]
        return [self.store.copy(start, self.chunk)] * len(self.recipe.groups)

    def write_surroundings(self) -> None:
        """Write all that is not a block. This comes first, so that what cannot be written fails at once."""
        job, folder = self.job, self.workspace.folder
        inside = f"{job.architecture.blocks}."
        rest = {name: tensor for name, tensor in stored_tensors(job.model).items() if not name.startswith(inside)}
        self.workspace.write(shard_stem(0, len(job.architecture.block_list(job.model))), rest)
        job.model.config.save_pretrained(folder)
        if getattr(job.model, "generation_config", None) is not None:
            # Not save_pretrained: it refuses settings that many published checkpoints have.
            job.model.generation_config.to_json_file(folder / "generation_config.json")
        if job.tokenizer is not None:
            job.tokenizer.save_pretrained(folder)

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
