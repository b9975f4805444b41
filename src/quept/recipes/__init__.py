"""The recipes shipped with quept, and recipes from TOML files."""

import tomllib
from importlib import resources
from pathlib import Path

from quept.config import Recipe
from quept.errors import InvalidInput
from quept.files import TooLarge, read_text

LARGEST = 2**20  # bytes of a recipe's file


def names() -> list[str]:
    """Return the names of the recipes shipped with quept."""
    return sorted(entry.name.removesuffix(".toml") for entry in _folder() if entry.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Return a shipped recipe by name, or one from a TOML file.

    Raises:
        InvalidInput: There is no such recipe or file, or it is not a valid recipe.
    """
    shipped = names()
    if str(name_or_path) in shipped:
        text = resources.files(__name__).joinpath(f"{name_or_path}.toml").read_text(encoding="utf-8")
        return _parse(text, str(name_or_path))
    path = Path(name_or_path)
    try:
        text = read_text(path, LARGEST)
    except UnicodeDecodeError:
        raise InvalidInput(f"The recipe {path} is not UTF-8 text; give a TOML file.") from None
    except TooLarge as error:
        raise InvalidInput(f"The recipe {path} cannot be read: {error}.") from None
    except (OSError, ValueError):
        raise InvalidInput(
            f"There is no recipe {str(name_or_path)!r}: give one of {', '.join(shipped)}, or the path of "
            "a TOML file (start from a copy of a shipped one)."
        ) from None
    return _parse(text, str(path))


def _parse(text: str, origin: str) -> Recipe:
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise InvalidInput(f"The recipe {origin} is not valid TOML: {error}.") from None
    if not isinstance(data.get("bits"), str):
        raise InvalidInput(f'The recipe {origin} must name its bit set, for example bits = "2-8".')
    return Recipe.parse(data, origin=f"The recipe {origin}")


def _folder() -> list[resources.abc.Traversable]:
    return list(resources.files(__name__).iterdir())
