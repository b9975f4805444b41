"""Settings of block-wise reconstruction, and of the stream that leads from one block to the next."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StrictFloat, StrictInt, model_validator

from quept.config.base import Value
from quept.config.bits import Bits

MergingStrategy = Literal["selective", "uniform", "random", "single-width", "per-group"]
Loss = Literal["mae", "mse"]
LearningRate = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


class Merging(Value):
    """MB-ToMe: the quantized stream for the next block, made of one output per bit group."""

    strategy: MergingStrategy = "selective"
    """`selective`, the paper's: tokens on which the highest and the lowest group agree keep the highest group's output,
    all others are mixed; `uniform` mixes all tokens; `random` takes each token from one group; `single-width` takes the
    output at one bit-width; `per-group` keeps a stream for each bit group. Source: paper, MB-ToMe."""

    kept: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.5
    """Share of tokens that `selective` leaves as the highest group has them. Source: paper, 50 %."""

    weights: tuple[StrictFloat, ...] = ()
    """Weights of the groups in a mixed token, high to low, summing to one; empty: 0.3, 0.3, 0.4 for three groups,
    equal parts for any other number. Source: paper, MB-ToMe."""

    single_width: StrictInt | None = None
    """Bit-width of the strategy `single-width`, one that is calibrated; no other strategy reads it."""

    def weights_for(self, groups: int) -> tuple[float, ...]:
        """Return one weight per group, high to low, summing to one."""
        if self.weights:
            return self.weights
        return (0.3, 0.3, 0.4) if groups == 3 else (1 / groups,) * groups


class Mixing(Value):
    """Training linears beside others at the next higher bit-width, as plans that mix bit-widths run them.

    Linears that read one tensor move together, and learn at the higher bit-width if it trains.
    """

    former_names: ClassVar = {"share": "probability"}

    bits: tuple[Bits, ...] = ()
    """Bit-widths at which linears may move up, in training and when their stream moves on; empty: none.
    Source: quept, docs/experiments.md."""

    probability: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    """Probability with which they do."""

    start: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    """Depth from which blocks take part, as a share of all: what follows the first blocks makes up for their errors, so
    that plans have little to gain there."""

    def chance(self, bits: int, block: int, blocks: int) -> float:
        """Return the probability with which linears at `bits` in block number `block` of `blocks` move up."""
        return self.probability if bits in self.bits and block >= self.start * blocks else 0.0


class Reconstruction(Value):
    """Block-wise reconstruction: loss, schedule and learning rates; defaults are the paper's."""

    former_names: ClassVar = {
        "cadence": "train_every",
        "clipping_start": "clip_init",
        "text_share": "label_weight",
    }

    loss: Loss = "mae"
    """Error of a block's output: mean absolute (`mae`) or mean squared (`mse`). Source: `mae`, paper."""

    last_block_loss: Literal["kl"] | None = None
    """`kl` trains the last block on the KL divergence of the model's predictions instead of on its hidden states.
    Source: quept, docs/experiments.md."""

    label_weight: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    """Share of the predicted probability that goes to the token that follows in the calibration text; needs
    `last_block_loss = "kl"`. Source: quept, docs/experiments.md."""

    epochs: Annotated[int, Field(strict=True, ge=0)] = 15
    """Passes over the samples per block; 0 trains nothing: all is rounded on the ranges at the start. Source: paper,
    LLaMA, weight-only."""

    batch_size: Annotated[int, Field(strict=True, ge=1)] = 2
    """Samples per optimizer step. Source: paper, LLaMA."""

    normalized: bool = False
    """Divide the loss at each bit-width by its value at the start, so that no group outweighs another.
    Source: quept."""

    train_every: tuple[Annotated[int, Field(strict=True, ge=0)], ...] = ()
    """One number per bit group, high to low: it takes part in every n-th step, or with 0 in none, which leaves its
    ranges whole; empty: every group in every step. Source: quept."""

    bfloat16_bits: tuple[Bits, ...] = ()
    """Bit-widths at which linears multiply in bfloat16 while they train and when their stream moves on, where the
    device has instructions for it. Source: quept."""

    mixing: Mixing = Mixing()
    """See below."""

    adapter_learning_rate: LearningRate = 7e-4
    """Learning rate of adapters. Source: paper, LLaMA, weight-only."""

    clip_init: Annotated[float, Field(strict=True, ge=-12, le=12)] | Literal["search"] = 4.0
    """Logit of the clip ratios at the start, or `search`: the ratios that round with the least output error, found for
    each group of inputs. Source: 4.0, paper; `search`, quept, docs/experiments.md."""

    clipping_learning_rate: LearningRate = 2e-2
    """Learning rate of the weights' clip ratios. Source: paper, LLaMA, weight-only."""

    activation_learning_rate: LearningRate = 1e-2
    """Learning rate of the activations' ranges. Source: quept; the recipes `weight-activation` and `vision` have the
    paper's."""

    rounding_learning_rate: LearningRate | Literal["auto"] = "auto"
    """First step of learned rounding, in quantization steps; steps fall linearly to zero. `auto`: 1.5 over the number
    of steps that a bit-width takes part in, at most 1/50. Source: quept."""

    final_learning_rate: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.01
    """Learning rates at the end, relative to the start; they fall along a cosine. Source: paper."""

    keep: Literal["best", "learned"] = "best"
    """Result that is kept: `best`, in each block and at each bit-width whichever of what was learned and plain rounding
    has the smaller error on samples that training has not seen; or all that was `learned`, to compare methods. Source:
    quept, docs/design.md."""

    @model_validator(mode="after")
    def _mixes_predictions(self) -> Self:
        if self.label_weight and self.last_block_loss != "kl":
            raise ValueError(
                f"reconstruction.label_weight {self.label_weight} is a share of the predictions that the last block is "
                "trained on; it needs last_block_loss = 'kl'"
            )
        return self

    def takes_part(self, group: int, step: int) -> bool:
        """Return whether group number `group` (0 is the highest) trains in this step."""
        every = self.train_every[group] if self.train_every else 1
        return every > 0 and step % every == 0
