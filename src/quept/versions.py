"""A warning for installed packages that are newer than the versions quept was tested with, by its own metadata."""

import warnings
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

TOOLS = "dev"  # the extra whose packages do not run with quept


def warn_untested() -> None:
    """Warn in one message of all installed packages that are newer than the tested versions."""
    if newer := list(_newer()):
        warnings.warn(
            f"Newer than what quept was tested with: {'; '.join(newer)}. If something fails, try a tested version.",
            RuntimeWarning,
            stacklevel=2,
        )


def _newer() -> Iterator[str]:
    """Yield each installed package that is above its range, with that range."""
    try:
        required = metadata.requires("quept") or []
    except metadata.PackageNotFoundError:  # run from its sources
        return
    extras = metadata.metadata("quept").get_all("Provides-Extra") or []
    for requirement in map(Requirement, required):
        named = [{"extra": extra} for extra in extras if extra != TOOLS] or [{"extra": ""}]
        if requirement.marker is not None and not any(map(requirement.marker.evaluate, named)):
            continue
        try:
            installed = Version(Version(metadata.version(requirement.name)).public)  # without +cpu and the like
        except metadata.PackageNotFoundError:
            continue
        ends = [limit for limit in requirement.specifier if limit.operator in ("<", "<=")]
        if any(installed >= Version(end.version) and not end.contains(installed, prereleases=True) for end in ends):
            yield f"{requirement.name} {installed} (tested: {requirement.specifier})"
