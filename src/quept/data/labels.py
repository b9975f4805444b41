"""Translation of a data set's labels to a model's class numbers."""

import re
from collections.abc import Mapping, Sequence

from quept.errors import InvalidInput

_WORDNET = re.compile(r"n\d{8}")
_LISTED = 5


class ClassNumbers:
    """Translates labels of a data set to the model's class numbers.

    - A text is a name in the model's `label2id`, or a number in digits.
    - WordNet identifiers, if there is one for each class of the model, are numbered in alphabetical order, as the
      classes of ImageNet are.
    - A number is the model's own, unless the data set names its classes and the model knows all of these names: then
      the name decides.
    """

    def __init__(self, classes: int, label2id: Mapping[str, int], names: Sequence[str] | None) -> None:
        """Prepare the translation.

        Args:
            classes: Number of classes of the model.
            label2id: The model's class numbers, by name.
            names: Names of the data set's classes in order of its own numbers, if it has any.
        """
        self._classes = classes
        self._label2id = label2id
        self._names = names if names and all(name in label2id for name in names) else None
        self._identifiers: dict[str, int] = {}
        if names and len(names) == classes and all(_WORDNET.fullmatch(name) for name in names):
            self._identifiers = {name: number for number, name in enumerate(sorted(names))}

    def __call__(self, label: int | str, where: str) -> int:
        """Return the class number of a label, 0 to classes - 1.

        Raises:
            InvalidInput: The model has no such class; the message begins with `where`.
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
        # int() would also take spaces, signs, underscores and digits of other scripts.
        return int(label) if re.fullmatch(r"[0-9]{1,9}", label) else None

    def _known(self) -> str:
        names = sorted(self._label2id, key=lambda name: self._label2id[name])
        return ", ".join(repr(name) for name in names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
