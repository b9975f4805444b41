"""The method's settings as frozen values; every rule about them is checked here and nowhere else.

A value that exists is a value that is allowed. `parse` and `updated` raise `InvalidInput` in one paragraph: what was
given, what is allowed, what to do; a constructor called directly raises pydantic's ValidationError (a ValueError too).
Sections, equations and tables cited below are those of the QuEPT paper
(arXiv 2602.12609, AAAI 2026) and its supplement.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from quept.weights import LARGEST_RANK, Adapter, AdapterEntry, AdapterKind, Granularity, Store, WeightSpec
from quept.widths import BitGroups, Value, Width, covering, parse_bits

__all__ = [
    "Activations",
    "Adapter",
    "AdapterEntry",
    "AdapterKind",
    "Data",
    "Granularity",
    "Merging",
    "Mixing",
    "Recipe",
    "Reconstruction",
    "Reparameterization",
    "Rotation",
    "Smoothing",
    "Store",
    "WeightSpec",
]

MergingStrategy = Literal["selective", "uniform", "random", "single-width", "per-group"]
Loss = Literal["mae", "mse"]
RangeStart = Literal["min-max", "percentile", "search"]
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


class Smoothing(Value):
    """AWQ-style smoothing: a grid of exponents, searched for the least output error at `bits`."""

    enabled: bool = True
    bits: tuple[Width, ...] = (2, 3, 4)
    grid: Annotated[int, Field(ge=1, le=200)] = 20
    tokens: Annotated[int, Field(ge=1)] = 512


class Rotation(Value):
    """QuaRot: Hadamard rotations that spread outliers over all channels, folded into weights where that is possible.

    Each head's values are rotated in the weights. With `across_heads` attention's outputs are rotated over all heads as
    well, as the model runs.
    """

    enabled: bool = False
    across_heads: bool = False


class Activations(Value):
    """Which widths activations can be rounded to, and on which ranges; none means weight-only.

    With the range of a `"token"` the linears' inputs are rounded symmetrically on a range that is measured anew for
    every token and clipped to a share that is learned per width; `group_size` inputs of a token share a range, or all
    of them where it is None. With that of a `"tensor"` they are rounded asymmetrically on a range that is learned per
    width and stays, and where `products` is set, so are both operands of attention's two products; `start` says where
    such ranges begin (RepQ-ViT: the best of a few percentiles). Attention's probabilities may have a logarithmic grid
    instead of a uniform one, where `softmax` says so (AdaLog).
    """

    bits: tuple[Width, ...] = ()
    range: Literal["token", "tensor"] = "token"
    group_size: Annotated[int, Field(ge=1)] | None = None
    products: bool = False
    start: RangeStart = "percentile"
    softmax: Literal["uniform", "log"] = "uniform"

    @field_validator("bits", mode="before")
    @classmethod
    def _written(cls, bits: Any) -> Any:
        return parse_bits(bits) if isinstance(bits, str) else bits

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.range == "tensor" and self.group_size is not None:
            raise ValueError(
                f"activations.group_size {self.group_size} divides the range of a token; it needs range = 'token'"
            )
        if self.range == "token" and self.products:
            raise ValueError("activations.products are rounded on the range of a tensor; set range = 'tensor'")
        return self

    def beside(self, weight_bits: int | None) -> int | None:
        """The width that activations have where only the weights' width is named.

        The same, or the highest where that is none of theirs: weights of so few bits are not for faster products.
        """
        if weight_bits is None or not self.bits:
            return None
        return weight_bits if weight_bits in self.bits else max(self.bits)


class Reparameterization(Value):
    """RepQ-ViT: channels behind a norm get one range in common, folded into the norm and the linears that read it.

    `strength` is how far they go towards it, 1 for all the way; "search" takes for each norm what rounds with the least
    output error over all widths, since what makes activations alike makes the weights that meet them unlike.
    """

    enabled: bool = False
    strength: Annotated[float, Field(gt=0, le=1)] | Literal["search"] = 1.0


class Mixing(Value):
    """Training linears beside others at the next higher width, as plans that mix widths run them.

    At the widths in `bits`, in training and when their stream moves on, linears that read one tensor take the next
    higher width instead with the chance `share`, and learn at that one if it trains: neither is to lean on the others
    being at its own. Blocks before the depth `start`, a share of all, stay as they are: what comes after them makes up
    for their errors, so that plans have little to gain there.
    """

    bits: tuple[Width, ...] = ()
    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def chance(self, bits: int, block: int, blocks: int) -> float:
        """With which chance linears of block number `block` of `blocks` that are to run at a width move up from it."""
        return self.share if bits in self.bits and block >= self.start * blocks else 0.0


class Reconstruction(Value):
    """Block-wise reconstruction: loss, schedule and learning rates (paper, implementation details).

    `normalized` divides each width's loss by its value at the start, so that no group outweighs another.
    `cadence`, one number per bit group from high to low, lets a group take part in every n-th step only, or with 0 in
    none, which leaves its ranges whole; empty means in all. At the widths in `bfloat16_bits` the linears multiply in
    bfloat16 while they train, and when their stream moves on.

    Rounding offsets move along their normalised gradient, with steps that fall linearly to zero. Their rate is the
    first step's length, in quantization steps; "auto" is 1.5 over the number of steps that a width takes part in, but
    at most 1/50.
    `clipping_start` is the logit of the share of the range that is kept at the start, or `"search"`: the share that
    rounds with the least output error, found per group of inputs. `activation_learning_rate` is that of the shares
    which activations' ranges are clipped to; they start in the same way.

    With no `epochs` nothing is trained: weights and activations are rounded on the ranges that they start with.
    `last_block_loss = "kl"` trains the last block on the model's predictions instead of its hidden states; of the
    probability that it is to predict, `text_share` goes to the token that follows in the calibration text.
    """

    loss: Loss = "mae"
    last_block_loss: Literal["kl"] | None = None
    text_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    epochs: Annotated[int, Field(ge=0)] = 15
    batch_size: Annotated[int, Field(ge=1)] = 2
    normalized: bool = False
    cadence: tuple[Annotated[int, Field(ge=0)], ...] = ()
    bfloat16_bits: tuple[Width, ...] = ()
    mixing: Mixing = Mixing()
    adapter_learning_rate: LearningRate = 7e-4
    clipping_start: Annotated[float, Field(ge=-12, le=12)] | Literal["search"] = 4.0
    clipping_learning_rate: LearningRate = 2e-2
    activation_learning_rate: LearningRate = 1e-2
    rounding_learning_rate: LearningRate | Literal["auto"] = "auto"
    final_learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.01

    @model_validator(mode="after")
    def _mixes_predictions(self) -> Self:
        if self.text_share and self.last_block_loss != "kl":
            raise ValueError(
                f"reconstruction.text_share {self.text_share} is a share of the predictions that the last block is "
                "trained on; it needs last_block_loss = 'kl'"
            )
        return self

    def takes_part(self, group: int, step: int) -> bool:
        """Whether group number `group` (0 is the highest) trains in this step."""
        every = self.cadence[group] if self.cadence else 1
        return every > 0 and step % every == 0


class Data(Value):
    """How much calibration text: `samples` windows of `sequence_length` tokens."""

    samples: Annotated[int, Field(ge=1)] = 128
    sequence_length: Annotated[int, Field(ge=2)] = 2048


class Recipe(Value):
    """Everything that a calibration does, as read from a recipe file.

    `outer_bits` is the width of the layers in front of the blocks and behind them (patch embedding and classifier of a
    vision transformer, head of a language model); None leaves them as they are.
    """

    name: Annotated[str, Field(min_length=1)]
    groups: BitGroups
    granularity: Granularity = Granularity()
    adapter: Adapter = Adapter()
    learned_rounding: tuple[Width, ...] = ()
    store: Store = Store()
    reconstruction: Reconstruction = Reconstruction()
    merging: Merging = Merging()
    smoothing: Smoothing = Smoothing()
    rotation: Rotation = Rotation()
    reparameterization: Reparameterization = Reparameterization()
    activations: Activations = Activations()
    outer_bits: Width | None = None
    data: Data = Data()

    @model_validator(mode="before")
    @classmethod
    def _bits_and_groups(cls, data: Any) -> Any:
        """Read `bits = "2-8"` and `groups = [[7, 8], ...]` into one partition that covers the bit set."""
        if not isinstance(data, dict) or not isinstance(data.get("bits"), str):
            return data
        data = dict(data)
        bits = parse_bits(data.pop("bits"))
        groups = data.get("groups")
        if groups is None:
            data["groups"] = BitGroups.partition(bits)
        else:
            data["groups"] = covering(groups.groups if isinstance(groups, BitGroups) else groups, bits)
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count = len(self.groups)
        weights = self.merging.weights
        if weights and not (len(weights) == count and abs(sum(weights) - 1) <= 1e-6 and min(weights) >= 0):
            raise ValueError(
                f"merging.weights {list(weights)} must be {count} non-negative numbers, one per bit "
                "group from high to low, that sum to 1"
            )
        if self.merging.strategy == "single-width" and self.merging.single_width not in self.groups.bits:
            raise ValueError(
                f"merging.single_width is {self.merging.single_width}; the strategy 'single-width' "
                f"needs one of the widths {list(self.groups.bits)}"
            )
        if self.learned_rounding and self.adapter.kind != "none" and self.adapter.entry != "weight":
            raise ValueError(
                f"learned_rounding and adapter.entry {self.adapter.entry!r} would both decide the rounding; use the "
                "entry 'weight' with it, or leave learned_rounding empty"
            )
        if self.store.master_bits in (*self.learned_rounding, *self.adapter.bits):
            raise ValueError(
                f"at {self.store.master_bits} bits the store's master is used as it is; leave that width out of "
                "learned_rounding and adapter.bits"
            )
        if self.store.master_bits and self.adapter.total_rank(self.groups) > LARGEST_RANK:
            raise ValueError(f"with store.master_bits the ranks of all groups may sum to {LARGEST_RANK} at most")
        enabled = [name for name in ("smoothing", "rotation", "reparameterization") if getattr(self, name).enabled]
        if len(enabled) > 1:
            raise ValueError(
                f"{' and '.join(enabled)} are both enabled, but each prepares the same channels; choose one"
            )
        cadence = self.reconstruction.cadence
        if cadence and (len(cadence) != count or not any(cadence)):
            raise ValueError(
                f"reconstruction.cadence {list(cadence)} must be {count} numbers, one per bit group from high to low, "
                "and not all 0"
            )
        return self

    @property
    def bits(self) -> tuple[int, ...]:
        """All widths, ascending."""
        return self.groups.bits

    @property
    def weight_spec(self) -> WeightSpec:
        """What each linear layer of the model must know."""
        adapter, stored = self.adapter, self.store.master_bits is not None
        if stored and adapter.kind != "none":
            adapted = self.store.without_master(adapter.bits or self.bits)
            adapter = adapter.updated(bits=adapted) if adapted else Adapter(kind="none")
        return WeightSpec(
            groups=self.groups,
            granularity=self.granularity,
            adapter=adapter,
            learned_rounding=tuple(bits for bits in self.bits if bits in self.learned_rounding),
            store=self.store,
            scaled=not stored or self.smoothing.enabled or self.reparameterization.enabled,
        )

    @property
    def trained_groups(self) -> tuple[tuple[int, ...], ...]:
        """The bit groups, high to low, without the width that has nothing to train: that of a stored master."""
        if self.activations.bits:
            return self.groups.groups
        return tuple(self.store.without_master(group) for group in self.groups.groups)

    @property
    def outer_weight_spec(self) -> WeightSpec | None:
        """What each layer outside the blocks must know, or None where they stay as they are."""
        if self.outer_bits is None:
            return None
        groups = BitGroups.partition((self.outer_bits,))
        granularity = Granularity(group_size=self.granularity.group_size, grouped_bits=())
        store = self.store if self.store.master_bits == self.outer_bits else Store()
        return WeightSpec(groups=groups, granularity=granularity, adapter=Adapter(kind="none"), store=store, fixed=True)

    @property
    def outer_activations(self) -> Activations:
        """How the inputs of layers outside the blocks are rounded: as those of other linears, at `outer_bits`."""
        bits = (self.outer_bits,) if self.outer_bits is not None and self.activations.bits else ()
        return self.activations.updated(bits=bits)

    def label(self, bits: int) -> str:
        """What a width of weights stands for: `4`, or `w4a4` where activations are rounded beside it."""
        beside = self.activations.beside(bits)
        return str(bits) if beside is None else f"w{bits}a{beside}"

    def with_bits(self, bits: Iterable[int]) -> "Recipe":
        """The same recipe for another bit set.

        Widths that go leave their group; a width that comes forms a group of its own. What is set per group keeps
        to the groups that stay: cadences do, unless nothing would train; merging weights must sum to one and are
        dropped. Where activations have widths, they get the same ones.
        """
        wanted = tuple(sorted(set(bits)))
        if wanted == self.bits:
            return self
        cadence = self.reconstruction.cadence or (1,) * len(self.groups)
        kept = [
            (tuple(width for width in group if width in wanted), every)
            for group, every in zip(self.groups.groups, cadence, strict=True)
        ]
        new = [((width,), 1) for width in wanted if width not in self.bits]
        chosen = sorted(((group, every) for group, every in kept + new if group), reverse=True)
        fastest = min((every for _, every in chosen if every), default=0)
        rescaled = tuple(every // fastest for _, every in chosen) if fastest else ()
        return self.updated(
            groups={"groups": [group for group, _ in chosen]},
            reconstruction=self.reconstruction.updated(cadence=rescaled),
            merging=self.merging.updated(weights=()),
            activations=self.activations.updated(bits=wanted if self.activations.bits else ()),
        )
