"""Module paths in a block, in which one `*` stands for every child in its place."""

from collections.abc import Sequence

from torch import nn


def find(module: nn.Module, path: str) -> nn.Module | None:
    """Return the submodule at a path, None where there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def is_present(block: nn.Module, path: str) -> bool:
    """Return whether a block has a module at a path that is no `nn.Identity`, a placeholder."""
    found = find(block, path)
    return found is not None and not isinstance(found, nn.Identity)


def expand(block: nn.Module, pattern: str) -> list[str]:
    """Return the paths that a pattern stands for, in the order of the children in the place of its `*`."""
    before, star, after = pattern.partition(".*")
    if not star or not is_present(block, before):
        return [pattern]
    return [f"{before}.{name}{after}" for name, _ in block.get_submodule(before).named_children()]


def expand_together(block: nn.Module, patterns: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the paths that patterns stand for, one tuple for each child in the place of the first pattern's `*`.

    A pattern with fewer paths repeats its last.
    """
    found = [expand(block, pattern) for pattern in patterns]
    if not all(found):
        return []
    return [tuple(paths[min(index, len(paths) - 1)] for paths in found) for index in range(len(found[0]))]
