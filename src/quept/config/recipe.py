"""The method's settings as frozen values; every rule about them is checked here and nowhere else.

A value that exists is a value that is allowed. `parse` and `updated` raise `InvalidInput` in one paragraph: what was
given, what is allowed, what to do; a constructor called directly raises pydantic's ValidationError (a ValueError too).
Sections, equations and tables cited below are those of the QuEPT paper
(arXiv 2602.12609, AAAI 2026) and its supplement.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from quept.config.activations import Activations
from quept.config.base import Value
from quept.config.bits import BitGroups, Bits, covering, parse_bits
from quept.config.reconstruction import Merging, Reconstruction
from quept.config.rules import MOST_RULES, Rule, merged
from quept.config.transforms import Reparameterization, Rotation, Smoothing
from quept.config.weight import LARGEST_RANK, Adapter, Granularity, Store, WeightSpec
from quept.errors import InvalidInput


class Data(Value):
    """The amount of calibration data."""

    samples: Annotated[int, Field(strict=True, ge=1)] = 128
    """Windows of text, or images. Source: paper, implementation details."""

    sequence_length: Annotated[int, Field(strict=True, ge=2)] = 2048
    """Tokens per window of text; the model's limit where that is lower. Source: paper, implementation details."""


class Recipe(Value):
    """All settings of a calibration, as read from a recipe file."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the recipe, kept in the artifact."""

    groups: BitGroups
    """Partition of the bit set into groups, high to low, in a file `bits = "2-8"` and `groups = [[7, 8], ...]`; without
    groups, the paper's: the lowest bit-width alone, the others in pairs. Each step of training draws one bit-width from
    each group. Source: paper, multi-tier sampling; supplement, table 3."""

    granularity: Granularity = Granularity()
    """See below."""

    adapter: Adapter = Adapter()
    """See below."""

    learned_rounding: tuple[Bits, ...] = ()
    """Bit-widths whose rounding is learned and kept as one bit per weight. Source: after SignRound (arXiv
    2309.05516), see docs/experiments.md."""

    rounding_method: Annotated[str, Field(min_length=1)] = "offsets"
    """The method that learns it: `offsets`, or one that was registered; see `register_rounding_method`."""

    store: Store = Store()
    """See below."""

    reconstruction: Reconstruction = Reconstruction()
    """See below."""

    merging: Merging = Merging()
    """See below."""

    smoothing: Smoothing = Smoothing()
    """See below."""

    rotation: Rotation = Rotation()
    """See below."""

    reparameterization: Reparameterization = Reparameterization()
    """See below."""

    activations: Activations = Activations()
    """See below."""

    outer_bits: Bits | None = None
    """Bit-width of the layers in front of the blocks and behind them (patch embedding and classifier of a vision
    transformer, head of a language model); None leaves them at full precision. Source: paper, ViT
    family: 8 bits."""

    rules: Annotated[tuple[Rule, ...], Field(max_length=MOST_RULES)] = ()
    """Settings of single layers, see below."""

    data: Data = Data()
    """See below."""

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
                f"needs one of the bit-widths {list(self.groups.bits)}"
            )
        if self.learned_rounding and self.adapter.kind != "none" and self.adapter.entry != "weight":
            raise ValueError(
                f"learned_rounding and adapter.entry {self.adapter.entry!r} would both decide the rounding; use the "
                "entry 'weight' with it, or leave learned_rounding empty"
            )
        if self.store.master_bits in (*self.learned_rounding, *self.adapter.bits):
            raise ValueError(
                f"at {self.store.master_bits} bits the store's master is used as it is; leave that bit-width "
                "out of learned_rounding and adapter.bits"
            )
        if self.store.master_bits and self.adapter.total_rank(self.groups) > LARGEST_RANK:
            raise ValueError(f"with store.master_bits the ranks of all groups may sum to {LARGEST_RANK} at most")
        self._check_rules()
        enabled = [name for name in ("smoothing", "rotation", "reparameterization") if getattr(self, name).enabled]
        if len(enabled) > 1:
            raise ValueError(
                f"{' and '.join(enabled)} are both enabled, but each prepares the same channels; choose one"
            )
        train_every = self.reconstruction.train_every
        if train_every and (len(train_every) != count or not any(train_every)):
            raise ValueError(
                f"reconstruction.train_every {list(train_every)} must be {count} numbers, one per bit group from high "
                "to low, and not all 0"
            )
        return self

    def _check_rules(self) -> None:
        """Raise ValueError for a rule that sets what the recipe does not have."""
        for rule in self.rules:
            if rule.group_size is not None and not self.granularity.grouped_bits:
                raise ValueError(
                    f"the rule for {rule.match!r} sets a group_size, but granularity.grouped_bits is empty; name the "
                    "bit-widths there that have groups"
                )
            if not rule.learned_rounding:
                continue
            if self.store.master_bits in rule.learned_rounding:
                raise ValueError(
                    f"the rule for {rule.match!r} learns the rounding at {self.store.master_bits} bits, where the "
                    "store's master is used as it is; leave that bit-width out"
                )
            if self.adapter.kind != "none" and self.adapter.entry != "weight":
                raise ValueError(
                    f"the rule for {rule.match!r} learns the rounding, which adapter.entry {self.adapter.entry!r} "
                    "decides too; use the entry 'weight' with it"
                )

    @property
    def bits(self) -> tuple[int, ...]:
        """All bit-widths, ascending."""
        return self.groups.bits

    @cached_property
    def weight_spec(self) -> WeightSpec:
        """The settings of each linear that no rule names; one object, so that all these share it."""
        adapter, stored = self.adapter, self.store.master_bits is not None
        if stored and adapter.kind != "none":
            adapted = self.store.without_master(adapter.bits or self.bits)
            adapter = adapter.updated(bits=adapted) if adapted else Adapter(kind="none")
        return WeightSpec(
            groups=self.groups,
            granularity=self.granularity,
            adapter=adapter,
            learned_rounding=tuple(bits for bits in self.bits if bits in self.learned_rounding),
            rounding_method=self.rounding_method,
            store=self.store,
            scaled=not stored or self.smoothing.enabled or self.reparameterization.enabled,
        )

    def weight_spec_for(self, path: str) -> WeightSpec | None:
        """Return the settings of the linear at a module path, as rules change them; None where it is left as it is."""
        spec, rule = self.weight_spec, merged(self.rules, path)
        if rule is None:
            return spec
        if rule.ignore:
            return None
        groups = self.groups if rule.bits is None else BitGroups.partition((rule.bits,))
        learned = self.learned_rounding if rule.learned_rounding is None else rule.learned_rounding
        return spec.updated(
            groups=groups,
            granularity=spec.granularity.updated(group_size=rule.group_size or spec.granularity.group_size),
            adapter=spec.adapter if rule.bits is None else Adapter(kind="none"),
            learned_rounding=tuple(bits for bits in groups.bits if bits in learned),
            fixed=rule.bits is not None,
        )

    def unused_rules(self, paths: Iterable[str]) -> list[str]:
        """Return the patterns of rules that match none of these module paths."""
        paths = list(paths)
        return [rule.match for rule in self.rules if not any(map(rule.matches, paths))]

    @property
    def trained_groups(self) -> tuple[tuple[int, ...], ...]:
        """The bit groups, high to low, without the bit-width that has nothing to train: that of a stored master."""
        if self.activations.bits:
            return self.groups.groups
        return tuple(self.store.without_master(group) for group in self.groups.groups)

    def outer_weight_spec_for(self, path: str) -> WeightSpec | None:
        """Return the settings of the layer outside the blocks at a module path; None where it is left as it is."""
        rule = merged(self.rules, path)
        if self.outer_bits is None or (rule is not None and rule.ignore):
            return None
        bits = self.outer_bits if rule is None or rule.bits is None else rule.bits
        groups = BitGroups.partition((bits,))
        granularity = Granularity(group_size=self.granularity.group_size, grouped_bits=())
        if rule is not None and rule.group_size is not None:
            granularity = Granularity(group_size=rule.group_size, grouped_bits=(bits,))
        store = self.store if self.store.master_bits == bits else Store()
        return WeightSpec(groups=groups, granularity=granularity, adapter=Adapter(kind="none"), store=store, fixed=True)

    @property
    def outer_activations(self) -> Activations:
        """The settings of the inputs of layers outside the blocks: those of other linears, at `outer_bits`."""
        bits = (self.outer_bits,) if self.outer_bits is not None and self.activations.bits else ()
        return self.activations.updated(bits=bits)

    def label(self, bits: int) -> str:
        """Return the precision that bits of weights stand for: `4`, or `w4a4` where activations are rounded too."""
        beside = self.activations.bits_for(bits)
        return str(bits) if beside is None else f"w{bits}a{beside}"

    def with_bits(self, bits: Iterable[int]) -> "Recipe":
        """Return the recipe for another bit set.

        Bit-widths that go leave their group; one that comes forms a group of its own. What is set per group keeps
        to the groups that stay: `train_every` does, unless nothing would train; merging weights must sum to one and are
        dropped. Where activations have bit-widths, they get the same ones.
        """
        wanted = tuple(sorted(set(bits)))
        if wanted == self.bits:
            return self
        train_every = self.reconstruction.train_every or (1,) * len(self.groups)
        kept = [
            (tuple(each for each in group if each in wanted), every)
            for group, every in zip(self.groups.groups, train_every, strict=True)
        ]
        new = [((each,), 1) for each in wanted if each not in self.bits]
        chosen = sorted(((group, every) for group, every in kept + new if group), reverse=True)
        fastest = min((every for _, every in chosen if every), default=0)
        rescaled = tuple(every // fastest for _, every in chosen) if fastest else ()
        return self.updated(
            groups={"groups": [group for group, _ in chosen]},
            reconstruction=self.reconstruction.updated(train_every=rescaled),
            merging=self.merging.updated(weights=()),
            activations=self.activations.updated(bits=wanted if self.activations.bits else ()),
        )

    def adjusted(
        self,
        *,
        bits: str | None = None,
        activation_bits: str | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        group_size: int | None = None,
        rank: int | None = None,
    ) -> "Recipe":
        """Return the recipe with the settings that are changed most often; None leaves one as it is.

        `bits` and `activation_bits` are written as in `2-8` or `2,4,8`. Raises `InvalidInput` for what is not allowed.
        """
        changes: dict[str, Any] = {}
        found = self if bits is None else self.with_bits(parse_bits(bits))
        if activation_bits is not None:
            if not found.activations.bits:
                raise InvalidInput(
                    f"The recipe {found.name} leaves activations at full precision, so --activation-bits has no "
                    "meaning; choose a recipe such as weight-activation-best or vision-best."
                )
            changes["activations"] = found.activations.updated(bits=parse_bits(activation_bits))
        training = {"epochs": epochs, "batch_size": batch_size}
        if given := {name: value for name, value in training.items() if value is not None}:
            changes["reconstruction"] = found.reconstruction.updated(**given)
        if group_size is not None:
            changes["granularity"] = found.granularity.updated(group_size=group_size)
        if rank is not None:
            changes["adapter"] = found.adapter.updated(rank=rank)
        return found.updated(**changes) if changes else found
