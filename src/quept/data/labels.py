"""Class labels of a data set as a model's class numbers."""

import re
from collections.abc import Mapping, Sequence

from quept.errors import InvalidInput

_WORDNET = re.compile(r"n\d{8}")
_LISTED = 5


class ClassNumbers:
    """Finds the model's number for a label of a data set.

    A label that is a text is a name of the model's `label2id`, or a number in digits. Folders named by WordNet
    identifiers, as many as the model has classes, are numbered in their order, which is how ImageNet's classes are. A
    label that is a number is the model's own, unless the data set names its classes and the model knows all of these
    names: then the name decides.
    """

    def __init__(self, classes: int, label2id: Mapping[str, int], names: Sequence[str] | None) -> None:
        """`classes`: how many the model has; `names`: the data set's classes, by its own numbers, where it says so."""
        self._classes = classes
        self._label2id = label2id
        self._names = names if names and all(name in label2id for name in names) else None
        self._identifiers: dict[str, int] = {}
        if names and len(names) == classes and all(_WORDNET.fullmatch(name) for name in names):
            self._identifiers = {name: number for number, name in enumerate(sorted(names))}

    def __call__(self, label: int | str, where: str) -> int:
        """The class number, 0 to classes - 1.

        Raises:
            InvalidInput: The model has no such class; `where` says whose label it is.
        """
        number = self._number(label)
        if number is None or not 0 <= number < self._classes:
            raise InvalidInput(
                f"{where} has the label {label!r}, which is none of the model's {self._classes} classes: allowed are "
                f"the numbers 0 to {self._classes - 1} and the names {self._known()}. Rename the classes, or give "
                f"images of those that the model knows."
            )
        return number

    def _number(self, label: int | str) -> int | None:
        if isinstance(label, int):
            if self._names is None:
                return label
            return self._label2id[self._names[label]] if 0 <= label < len(self._names) else None
        if label in self._label2id:
            return self._label2id[label]
        if label in self._identifiers:
            return self._identifiers[label]
        # Not int(), which takes spaces, signs, underscores and digits of other scripts.
        return int(label) if re.fullmatch(r"[0-9]{1,9}", label) else None

    def _known(self) -> str:
        names = sorted(self._label2id, key=lambda name: self._label2id[name])
        return ", ".join(repr(name) for name in names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
