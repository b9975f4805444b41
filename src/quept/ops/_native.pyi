"""The extension module, built from `native/`: addresses in, nothing out."""

from collections.abc import Sequence

class Plan:
    def __init__(self, parts: Sequence[tuple[int, int, Sequence[tuple[int, int, int]]]]) -> None: ...

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
