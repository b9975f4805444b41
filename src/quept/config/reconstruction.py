"""Settings of block-wise reconstruction, and of the stream that leads from one block to the next."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from quept.config.base import Value
from quept.config.bits import Bits

MergingStrategy = Literal["selective", "uniform", "random", "single-width", "per-group"]
Loss = Literal["mae", "mse"]
LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Merging(Value):
    """MB-ToMe: how the quantized stream for the next block is built from one output per bit group.

    `kept` is the share of tokens that take the highest group's output as it is. `weights`, high to low, mix the
    others; empty means the paper's: 0.3, 0.3, 0.4 for three groups, equal parts for any other number.
    `single_width` is read by the strategy of that name alone.
    """

    strategy: MergingStrategy = "selective"
    kept: Annotated[float, Field(ge=0, le=1)] = 0.5
    weights: tuple[float, ...] = ()
    single_width: int | None = None

    def weights_for(self, groups: int) -> tuple[float, ...]:
        """One weight per group, high to low, summing to one."""
        if self.weights:
            return self.weights
        return (0.3, 0.3, 0.4) if groups == 3 else (1 / groups,) * groups


class Mixing(Value):
    """Training linears beside others at the next higher width, as plans that mix widths run them.

    At the widths in `bits`, in training and when their stream moves on, linears that read one tensor take the next
    higher width instead with the chance `probability`, and learn at that one if it trains: neither is to lean on the
    others being at its own. Blocks before the depth `start`, a share of all, stay as they are: what comes after them
    makes up for their errors, so that plans have little to gain there.
    """

    former_names: ClassVar = {"share": "probability"}

    bits: tuple[Bits, ...] = ()
    probability: Annotated[float, Field(ge=0, lt=1)] = 0.0
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def chance(self, bits: int, block: int, blocks: int) -> float:
        """With which chance linears of block number `block` of `blocks` that are to run at a width move up from it."""
        return self.probability if bits in self.bits and block >= self.start * blocks else 0.0


class Reconstruction(Value):
    """Block-wise reconstruction: loss, schedule and learning rates (paper, implementation details).

    `normalized` divides each width's loss by its value at the start, so that no group outweighs another.
    `train_every`, one number per bit group from high to low, lets a group take part in every n-th step only, or with 0
    in none, which leaves its ranges whole; empty means in all. At the widths in `bfloat16_bits` the linears multiply in
    bfloat16 while they train, and when their stream moves on.

    Rounding offsets move along their normalised gradient, with steps that fall linearly to zero. Their rate is the
    first step's length, in quantization steps; "auto" is 1.5 over the number of steps that a width takes part in, but
    at most 1/50.
    `clip_init` is the logit of the share of the range that is kept at the start, or `"search"`: the share that
    rounds with the least output error, found per group of inputs. `activation_learning_rate` is that of the shares
    which activations' ranges are clipped to; they start in the same way.

    With no `epochs` nothing is trained: weights and activations are rounded on the ranges that they start with.
    `last_block_loss = "kl"` trains the last block on the model's predictions instead of its hidden states; of the
    probability that it is to predict, `label_weight` goes to the token that follows in the calibration text.
    """

    former_names: ClassVar = {
        "cadence": "train_every",
        "clipping_start": "clip_init",
        "text_share": "label_weight",
    }

    loss: Loss = "mae"
    last_block_loss: Literal["kl"] | None = None
    label_weight: Annotated[float, Field(ge=0, lt=1)] = 0.0
    epochs: Annotated[int, Field(ge=0)] = 15
    batch_size: Annotated[int, Field(ge=1)] = 2
    normalized: bool = False
    train_every: tuple[Annotated[int, Field(ge=0)], ...] = ()
    bfloat16_bits: tuple[Bits, ...] = ()
    mixing: Mixing = Mixing()
    adapter_learning_rate: LearningRate = 7e-4
    clip_init: Annotated[float, Field(ge=-12, le=12)] | Literal["search"] = 4.0
    clipping_learning_rate: LearningRate = 2e-2
    activation_learning_rate: LearningRate = 1e-2
    rounding_learning_rate: LearningRate | Literal["auto"] = "auto"
    final_learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.01

    @model_validator(mode="after")
    def _mixes_predictions(self) -> Self:
        if self.label_weight and self.last_block_loss != "kl":
            raise ValueError(
                f"reconstruction.label_weight {self.label_weight} is a share of the predictions that the last block is "
                "trained on; it needs last_block_loss = 'kl'"
            )
        return self

    def takes_part(self, group: int, step: int) -> bool:
        """Whether group number `group` (0 is the highest) trains in this step."""
        every = self.train_every[group] if self.train_every else 1
        return every > 0 and step % every == 0
