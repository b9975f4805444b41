"""AWQ-style smoothing (arXiv 2306.00978): channel scales, folded into weights, that lower the rounding error.

Weights of channels with large activations deserve finer steps. At a site the input columns of the consumers are
multiplied by `s`, and the matching output channels of their producer are divided by it, which leaves the function
unchanged; `s` is the mean magnitude of the channel's activations to the power that rounds best at low bit-widths (AWQ,
eq. 4 and 5). Scales are powers of two: multiplying and dividing by them is exact in every floating-point format, so the
full-precision output stays equal bit for bit. Norms that add an offset to their weight are the exception: they are kept
in float32, in which the folded weight is almost exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quept.config import Granularity, Recipe, Smoothing
from quept.layers.linear import weight_of
from quept.models import Architecture, BlockContext, Site
from quept.numerics import affine
from quept.transforms.base import FoldedInput, Transform


@dataclass(frozen=True)
class ChannelScales:
    """The scales of a block's sites.

    Attributes:
        columns: Factors of the input columns of consumers, `(in,)`, by path.
        rows: Divisors of the output channels of producers, `(out,)`, by path.
    """

    columns: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]

    @torch.no_grad()
    def fold(self, block: nn.Module, architecture: Architecture) -> None:
        """Fold the scales into the block's weights, in place."""
        for path, scale in self.columns.items():
            weight = weight_of(block.get_submodule(path))
            weight.mul_(scale)
        for path, scale in self.rows.items():
            producer: Any = block.get_submodule(path)
            if architecture.is_linear(path):
                weight_of(producer).div_(scale.unsqueeze(1))
            else:
                offset = architecture.norm_offset
                producer.weight.copy_((producer.weight + offset) / scale - offset)
            if getattr(producer, "bias", None) is not None:
                producer.bias.div_(scale)


@dataclass(frozen=True)
class Smooth(Transform):
    """Smoothing of every block; settings are those of a recipe."""

    recipe: Recipe

    def observed_inputs(self, context: BlockContext) -> frozenset[str]:
        """Return one consumer of each site."""
        return frozenset(site.consumers[0] for site in context.architecture.sites_for(context.config))

    def fold(self, block: nn.Module, context: BlockContext, inputs: Mapping[str, Tensor]) -> Mapping[str, FoldedInput]:
        """Search the scales, and fold them into the block's weights."""
        recipe = self.recipe
        scales = fit(
            block, context.architecture, context.config, inputs, recipe.smoothing, recipe.granularity, recipe.bits
        )
        scales.fold(block, context.architecture)
        return {path: FoldedInput(scale) for path, scale in scales.columns.items()}


@torch.no_grad()
def fit(
    block: nn.Module,
    architecture: Architecture,
    config: Any,
    inputs: Mapping[str, Tensor],
    settings: Smoothing,
    granularity: Granularity,
    bits: Sequence[int],
) -> ChannelScales:
    """Search the scales of every site of a block.

    The error is summed over the bit-widths of `settings.bits` that are in `bits`, or is that of the lowest of `bits`.

    Args:
        block: The block; it is not changed.
        architecture: The block's architecture.
        config: The model's configuration.
        inputs: Samples of linears' input rows, `(tokens, in)`, by path in the block.
        settings: Bit-widths and candidates of the search.
        granularity: Inputs per scale when weights are rounded.
        bits: The recipe's bit-widths.
    """
    low_bits = [each for each in settings.bits if each in bits] or [min(bits)]
    columns: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    for site in architecture.sites_for(config):
        sample = inputs[site.consumers[0]].float()
        producer_rows = site.channels.rows(config, sample.shape[1]).to(sample.device)
        weights = [weight_of(block.get_submodule(path)).float() for path in site.consumers]
        scale = _search(sample, weights, producer_rows, settings.grid, granularity, low_bits)
        if f"{site.producer}.weight" in architecture.float32_parameters:
            # A common factor changes no code. With this one the norm's weights only grow, which keeps their precision
            # beside the offset if the model is cast to a narrower dtype later.
            scale = scale / scale.max()
        columns.update(dict.fromkeys(site.consumers, scale))
        rows[site.producer] = _producer_scale(block, site, producer_rows, scale)
    return ChannelScales(columns, rows)


def _search(
    sample: Tensor,
    weights: Sequence[Tensor],
    producer_rows: Tensor,
    steps: int,
    granularity: Granularity,
    bits: Sequence[int],
) -> Tensor:
    """Return the column scale, `(in,)`, with the least summed relative output error; ones if no other is better."""
    magnitude = _mean_over_shared(sample.abs().mean(0), producer_rows)
    exact = [sample @ weight.T for weight in weights]
    best, best_error, plain_errors = torch.ones_like(magnitude), float("inf"), None
    for step in range(steps):
        scale = _power_of_two(magnitude.clamp_min(1e-8) ** (step / steps))
        errors = torch.stack([_output_error(sample, weights, exact, scale, granularity, b) for b in bits])
        # Step 0 is no smoothing; relative to it, every bit-width counts alike.
        plain_errors = errors.clamp_min(torch.finfo(errors.dtype).tiny) if plain_errors is None else plain_errors
        error = float((errors / plain_errors).sum())
        if error < best_error:
            best, best_error = scale, error
    return best


def _power_of_two(scale: Tensor) -> Tensor:
    """Return `scale` rounded to powers of two, with exponents centred around zero."""
    exponent = scale.log2()
    centre = (exponent.max() + exponent.min()) / 2
    return torch.exp2((exponent - centre).round().clamp(-8, 8))


def _output_error(
    sample: Tensor,
    weights: Sequence[Tensor],
    exact: Sequence[Tensor],
    scale: Tensor,
    granularity: Granularity,
    bits: int,
) -> Tensor:
    """Return the mean squared error of the consumers' outputs if their scaled weights are rounded to nearest."""
    total = sample.new_zeros(())
    scaled_sample = sample / scale
    for weight, output in zip(weights, exact, strict=True):
        inputs = granularity.inputs_per_scale(bits, weight.shape[1])
        grouped = affine.split_groups(weight * scale, inputs)
        rounded = affine.join_groups(affine.fake_quantize(grouped, affine.grid(grouped, bits)), weight.shape[1])
        total += (scaled_sample @ rounded.T - output).square().mean()
    return total


def _mean_over_shared(magnitude: Tensor, producer_rows: Tensor) -> Tensor:
    """Return the mean magnitude over channels that share a producer row, which must share a scale, per channel."""
    size = int(producer_rows.max()) + 1
    total = magnitude.new_zeros(size).index_add_(0, producer_rows, magnitude)
    count = magnitude.new_zeros(size).index_add_(0, producer_rows, torch.ones_like(magnitude))
    return (total / count.clamp_min(1))[producer_rows]


def _producer_scale(block: nn.Module, site: Site, producer_rows: Tensor, scale: Tensor) -> Tensor:
    """Return the scale of every output channel of the producer; one where no consumer reads the channel."""
    channels = _output_channels(block.get_submodule(site.producer))
    full = scale.new_ones(channels)
    full[producer_rows] = scale
    return full


def _output_channels(producer: nn.Module) -> int:
    weight = producer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0] if weight.dim() == 1 else weight_of(producer).shape[0]
