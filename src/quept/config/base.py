"""The base of all settings: frozen, validated values that can be read from files."""

import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from quept.errors import InvalidInput

MOST_FINDINGS = 8  # told of one value that is not valid
LONGEST_PART = 200  # characters of a name that says where


class Value(BaseModel):
    """A frozen, fully validated setting; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    former_names: ClassVar[Mapping[str, str]] = {}
    """Names that fields had in files written by earlier versions, with the present ones; still read."""

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for former, name in cls.former_names.items():
            if former in data and name in data:
                raise ValueError(f"{former} is the former name of {name}; give one of the two")
        return cls._renamed(data)

    @classmethod
    def parse(cls, data: Any, *, origin: str) -> Self:
        """Validate `data` (mappings, lists, numbers) read from `origin`; raise `InvalidInput` in one paragraph."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InvalidInput(f"{origin} is not valid: {describe(error)}") from None

    def updated(self, **changes: Any) -> Self:
        """Return a copy with `changes`, validated like a new value."""
        return type(self).parse({**self.model_dump(), **self._renamed(changes)}, origin=type(self).__name__)

    def dump_under_former_names(self) -> dict[str, Any]:
        """Return what differs from the defaults as JSON values, as the first version that had each field named it."""
        former = {name: key for key, name in self.former_names.items()}
        dumped = self.model_dump(mode="json", exclude_defaults=True)
        for name, value in self:
            if name in dumped and isinstance(value, Value):
                dumped[name] = value.dump_under_former_names()
        return {former.get(name, name): value for name, value in dumped.items()}

    @classmethod
    def _renamed(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        return {cls.former_names.get(key, key): value for key, value in data.items()}


def describe(error: ValidationError) -> str:
    """Pydantic's findings as one sentence each: where, what was given, what is wrong.

    What was given may be a whole damaged file, so it is shortened, and stays on one line; of many findings the first
    ones are told.
    """
    findings, found = [], error.errors(include_url=False)
    for item in found[:MOST_FINDINGS]:
        where = ".".join(str(part)[:LONGEST_PART] for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        given = f" (given: {reprlib.repr(item['input'])})" if item["type"] not in ("value_error", "missing") else ""
        findings.append(f"{where}: {message}{given}" if where else f"{message}{given}")
    if len(found) > MOST_FINDINGS:
        findings.append(f"and {len(found) - MOST_FINDINGS} more")
    return " ".join("; ".join(findings).split())
