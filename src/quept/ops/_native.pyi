"""The extension module, built from `native/`: addresses in, next to nothing out."""

from collections.abc import Sequence

class Plan:
    def __init__(self, parts: Sequence[tuple[int, int, Sequence[tuple[int, int, int]]]]) -> None: ...

class PackedWeight:
    def __init__(
        self,
        codes: int,
        scale: int,
        row_scale: int,
        zero_point: int,
        out_features: int,
        in_features: int,
        bits: int,
        inputs_per_scale: int,
    ) -> None: ...
    @property
    def multiplies_integers(self) -> bool: ...

def multiply(
    weight: PackedWeight,
    values: int,
    type: int,
    tokens: int,
    stride: int,
    bias: int,
    result: int,
    threads: int,
) -> None: ...
def dense(weight: PackedWeight, first_row: int, rows: int, result: int, type: int, threads: int) -> None: ...
def rebuild(
    weight: PackedWeight,
    symmetric: bool,
    master: int,
    master_scale: int,
    master_group: int,
    up: int,
    down: int,
    rank: int,
    adapter_scale: int,
    shares: int,
    plane: int,
    threads: int,
) -> None: ...
def read_bandwidth(bytes: int, passes: int, threads: int) -> tuple[float, int]: ...
def quantize(
    values: int,
    type: int,
    rows: int,
    width: int,
    stride: int,
    share: float,
    highest: float,
    codes: int,
    scale: int,
    sums: int,
    threads: int,
) -> None: ...
def rotate(
    plan: Plan, values: int, type: int, rows: int, width: int, stride: int, result: int, threads: int
) -> None: ...
def rotate_and_quantize(
    plan: Plan,
    values: int,
    type: int,
    rows: int,
    width: int,
    stride: int,
    share: float,
    highest: float,
    codes: int,
    scale: int,
    sums: int,
    threads: int,
) -> None: ...
def finish(
    product: int,
    from_: int,
    result: int,
    to: int,
    rows: int,
    width: int,
    scale: int,
    sums: int,
    shift: int,
    bias: int,
    threads: int,
) -> None: ...
def paths() -> list[str]: ...
def path() -> str: ...
def choose(name: str) -> None: ...
def has_threads() -> bool: ...
