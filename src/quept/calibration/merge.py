"""Building the quantized stream for the next block (method, MB-ToMe)."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from quept.calibration.block import CalibrationBlock
from quept.calibration.mixing import Mixture, draw_mixture
from quept.calibration.reconstruct import draw
from quept.calibration.stream import Stream
from quept.calibration.tools import Tools
from quept.config import Merging, Reconstruction
from quept.numerics import merging


def advance(
    block: CalibrationBlock,
    streams: Sequence[Stream],
    training: Reconstruction,
    generator: torch.Generator,
    tools: Tools,
) -> list[Stream]:
    """Return the streams behind a frozen block, one for each bit group; those in front may not be read any more.

    `streams` holds one stream per bit group, high to low; the merging strategies share a single one, so that all
    entries are the same object. Every sample draws its own bit-width from each group, and where `training` mixes
    bit-widths, its own linears at the next higher one. At the bits in its `bfloat16_bits` the linears multiply in
    bfloat16.
    """
    samples, groups, settings = streams[0].samples, block.recipe.groups.groups, block.recipe.merging
    drawn = [
        [draw_mixture(block, bits, training, generator) for bits in each]
        for each in [[draw(group, generator) for _ in range(samples)] for group in groups]
    ]
    replicas = [block, *(block.replica() for _ in drawn[1:])]

    def run(group: int, rows: slice, hidden: Tensor) -> Tensor:
        return _run_each(replicas[group], hidden, drawn[group][rows], training.bfloat16_bits)

    def replace(group: int) -> Stream:
        stream = streams[group]
        with replicas[group].derived_once():
            return tools.streams.replace(stream, tools.chunk, lambda rows: run(group, rows, stream.read(rows)))

    if settings.strategy == "per-group":
        return tools.workers.map(replace, range(len(drawn)))
    if settings.strategy == "single-width":
        assert settings.single_width is not None
        drawn = [[Mixture(settings.single_width)] * samples]

    def output(group: int, rows: slice, hidden: Tensor) -> Tensor:
        with torch.no_grad():  # which every thread has to say for itself
            return run(group, rows, hidden)

    def run_merged(rows: slice) -> Tensor:
        hidden = streams[0].read(rows)
        outputs = tools.workers.map(partial(output, rows=rows, hidden=hidden), range(len(drawn)))
        alone = settings.strategy == "single-width"
        return outputs[0] if alone else merge(torch.stack(outputs), settings, generator)

    with ExitStack() as stack:
        for replica in replicas:
            stack.enter_context(replica.derived_once())
        return [tools.streams.replace(streams[0], tools.chunk, run_merged)] * len(streams)


def merge(outputs: Tensor, settings: Merging, generator: torch.Generator) -> Tensor:
    """`(groups, batch, tokens, hidden)`, high to low, to one `(batch, tokens, hidden)`."""
    groups = outputs.shape[0]
    match settings.strategy:
        case "selective":
            return merging.selective(outputs, settings.kept, settings.weights_for(groups))
        case "uniform":
            return merging.mixture(outputs, (1 / groups,) * groups)
        case "random":
            return merging.random_choice(outputs, generator)
    raise AssertionError(f"{settings.strategy} does not merge outputs")


def _run_each(
    block: CalibrationBlock, hidden: Tensor, mixtures: Sequence[Mixture], bfloat16_bits: Sequence[int]
) -> Tensor:
    """Run each sample at its own bit-widths: one run for all samples that have the same."""
    output: Tensor | None = None  # a block may change the shape of what it is given
    for mixture in sorted(set(mixtures), key=lambda each: (each.bits, each.others)):
        rows = [row for row, each in enumerate(mixtures) if each == mixture]
        with block.multiplying(torch.bfloat16 if mixture.bits in bfloat16_bits else None):
            states = block.run(hidden[rows], mixture.bits, dict(mixture.others))
        if output is None:
            output = states.new_empty(len(hidden), *states.shape[1:])
        output[rows] = states
    assert output is not None
    return output
