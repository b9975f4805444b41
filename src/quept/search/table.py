"""A table of sensitivities: the cost of each part of a model in accuracy at each bit-width, saved as JSON."""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StrictFloat, field_validator, model_validator

from quept.config import Bits, Precision, Value
from quept.errors import InvalidInput
from quept.files import read_json, write_json
from quept.search.expansion import Expansion

TABLE_VERSION: Final = 1
MOST_COLUMNS: Final = 10_000  # bit-widths of linears; the products of all their pairs then take 800 MB
MOST_PARTS: Final = 100_000
LARGEST: Final = 1e6  # nats: what logits in float16, the widest that there are, can differ by, and more
BELOW_ZERO: Final = -1e-6  # what is left of a divergence of zero after rounding
LARGEST_FILE: Final = 2**29  # bytes: of a table of as many columns, with its pairs

Metric = Literal["kl", "gradient"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Origin(Value):
    """The origin of a table: everything that determines its numbers, up to the machine's rounding.

    `model` is the digest of what made the artifact, `data_sha256` that of the inputs. `rows` are how many predictions
    count.
    """

    metric: Metric
    model: Digest
    data: str
    data_sha256: Digest
    rows: Annotated[int, Field(strict=True, ge=1)]
    keys_values: tuple[Bits, ...] = ()


class SensitivityTable(Value):
    """Divergences of a model from full precision when one part alone takes a bit-width.

    `parts` are the divergences, in nats per row, by path and bit-width (`"4"`, `"w16a8"`, `"kv4"`). `pairs` are the
    correlations of what two linears do to the predictions: a row of numbers for every linear and plain bit-width, in
    the order of `parts`, each with those before it; the first row is empty. A table may be without.
    """

    format: Literal["quept-sensitivity"] = "quept-sensitivity"
    version: Literal[1] = TABLE_VERSION
    origin: Origin
    parts: Annotated[dict[str, dict[str, StrictFloat]], Field(max_length=MOST_PARTS)]
    pairs: tuple[str, ...] = ()

    @field_validator("parts")
    @classmethod
    def _check_parts(cls, parts: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for path, errors in parts.items():
            for precision, error in errors.items():
                if not BELOW_ZERO <= error <= LARGEST:  # NaN is not
                    raise ValueError(
                        f"the sensitivity of {path} at {precision} is {error}; it is a divergence in nats, from 0 to "
                        f"{LARGEST:,.0f}"
                    )
                if str(Precision.parse(precision)) != precision:
                    raise ValueError(f"the precision {precision!r} of {path} is written {Precision.parse(precision)}")
        return parts

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        count = len(self.columns)
        if count > MOST_COLUMNS:
            raise ValueError(f"the linears have {count} bit-widths together; at most {MOST_COLUMNS} are allowed")
        if self.pairs and len(self.pairs) != count:
            raise ValueError(f"pairs has {len(self.pairs)} rows; the linears' bit-widths are {count}")
        for _ in self._correlations():
            pass
        return self

    @property
    def columns(self) -> list[tuple[str, str]]:
        """The path and bit-width of each row of `pairs`."""
        return [(path, precision) for path, errors in self.parts.items() for precision in errors if precision.isdigit()]

    def products(self) -> NDArray[np.float64]:
        """Return what two linears add to the sum of their divergences, twice, `(columns, columns)`; zeros by default.

        It is their correlation times the root of both divergences. So the divergence of a plan, its own sum and that
        over all its pairs, is never negative.
        """
        count = len(self.columns)
        matrix = np.zeros((count, count))
        for place, numbers in enumerate(self._correlations()):
            matrix[place, :place] = matrix[:place, place] = numbers
        roots = np.sqrt([max(self.parts[path][precision], 0.0) for path, precision in self.columns])
        return np.asarray(matrix * roots[:, None] * roots)

    def _correlations(self) -> Iterator[list[float]]:
        """Yield the rows of `pairs`; raises ValueError for one that is not of as many numbers as come before it."""
        for place, row in enumerate(self.pairs):
            numbers = [float(number) for number in row.split(maxsplit=place)]
            if len(numbers) != place or not all(-1 <= number <= 1 for number in numbers):
                raise ValueError(f"row {place} of pairs must hold {place} numbers from -1 to 1")
            yield numbers

    def with_pairs(self, expansion: Expansion) -> Self:
        """Return the table with the correlations that an expansion around full precision has, to four decimals."""
        places = {column: place for place, column in enumerate(expansion.columns)}
        chosen = [places[column] for column in self.columns]
        matrix = expansion.products[np.ix_(chosen, chosen)]
        roots = np.sqrt(np.diagonal(matrix))
        matrix = matrix / np.where(roots > 0, roots, 1.0)[:, None] / np.where(roots > 0, roots, 1.0)
        lines = matrix.clip(-1.0, 1.0).tolist()
        return self.updated(pairs=tuple(" ".join(f"{x:.4f}" for x in row[:place]) for place, row in enumerate(lines)))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Return the table in a JSON file; `InvalidInput` if it holds none."""
        return cls.parse(read_json(path, "a sensitivity table", LARGEST_FILE), origin=str(path))

    def write(self, path: Path) -> None:
        """Write the table as JSON; `read` gives it back."""
        write_json(path, self.model_dump(mode="json"))

    def check_model(self, model: str, where: str) -> None:
        """`InvalidInput` unless the table is of the model with this digest; `where` names the table."""
        if self.origin.model != model:
            raise InvalidInput(
                f"{where} was measured on another model than this artifact; measure this one's with quept sensitivity."
            )


def model_digest(manifest: Any) -> str:
    """Return a digest that tells an artifact from others, also once it was saved again."""
    # Defaults left out: a setting that later releases add must not make an artifact another one.
    # Former names, and no version: what an artifact is does not change with the words for it.
    left_out = ("files", "dtype", *(["version"] if manifest.version > 1 else []))
    made = {key: value for key, value in manifest.dump_under_former_names().items() if key not in left_out}
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def rank_correlation(one: SensitivityTable, other: SensitivityTable) -> float:
    """Spearman's rank correlation of two tables, over what both hold.

    Raises `InvalidInput` where that is less than two numbers, or all are equal in one of them.
    """
    shared = [
        (error, other.parts[path][precision])
        for path, errors in one.parts.items()
        for precision, error in errors.items()
        if precision in other.parts.get(path, {})
    ]
    first, second = (_ranks([pair[side] for pair in shared]) for side in (0, 1))
    middle = (len(shared) + 1) / 2
    products = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    squares = math.prod(sum((rank - middle) ** 2 for rank in ranks) for ranks in (first, second))
    if not squares:
        raise InvalidInput("The two tables share too little to be compared: measure the same parts and bit-widths.")
    return products / math.sqrt(squares)


def _ranks(values: list[float]) -> list[float]:
    """Return the rank of each value, from 1; equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or values[order[end]] != values[order[start]]:
            for position in order[start:end]:
                ranks[position] = (start + 1 + end) / 2
            start = end
    return ranks
