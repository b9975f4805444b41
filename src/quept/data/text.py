"""Text documents from local files and from the named data sets.

Local files are not read by `datasets`, which takes a path for a pattern (`a[1].parquet`), keeps files in its cache and
names neither the line nor the row of a malformed document.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from stat import S_ISREG

from quept.data.hub import HUB_TEXTS, Split, read_hub, require
from quept.errors import InvalidInput

BYTE_ORDER_MARK = "\ufeff"  # says nothing in UTF-8, and is no part of the text
_SURROGATE = re.compile("[\ud800-\udfff]")


def load_text(source: str | Path, *, split: Split) -> Iterator[str]:
    r"""Read the documents of a text source, lazily and in order.

    Args:
        source: A path, or as a string one of the names wikitext2, ptb, c4, pile and redpajama (write `./c4`
            for a path of such a name). `.txt`: the whole file is one document, as it is. `.jsonl`: a line
            is a document, a JSON object with a field `text` or a JSON string; blank lines are none. `.parquet`:
            a row is a document, in the column `text`. All text is UTF-8, with or without a byte order mark.
        split: Split of a named data set. A file has no splits and is read whole.

    Returns:
        The documents, one by one; some may be empty.

    Raises:
        InvalidInput: At once if there is no such source, it cannot be read, or a package to read it is not installed;
            while iterating if a part of it is malformed or out of reach.
    """
    if isinstance(source, str) and source in HUB_TEXTS:
        return read_hub(source, split)
    path = Path(source)
    _check_file(path)
    return _READERS[path.suffix.lower()](path)


def is_published(source: str | Path) -> bool:
    """Return whether a source is a named data set, whose documents are joined as in published results."""
    return isinstance(source, str) and source in HUB_TEXTS


def separator(source: str | Path) -> str:
    """Return the text between two documents of a source."""
    return HUB_TEXTS[source].separator if isinstance(source, str) and source in HUB_TEXTS else "\n\n"


def _check_file(path: Path) -> None:
    allowed = f"a file that ends in {', '.join(_READERS)}, or one of the names {', '.join(HUB_TEXTS)}"
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # not path.exists(), which raises for a name that is too long
        raise InvalidInput(
            f"'{path}' is neither an existing file nor the name of a data set: give {allowed}."
        ) from error
    if not S_ISREG(status.st_mode):
        raise InvalidInput(f"'{path}' is a directory or a device, not a text file: give {allowed}.")
    if path.suffix.lower() not in _READERS:
        raise InvalidInput(f"'{path}' is of an unknown kind ('{path.suffix}'): give {allowed}.")
    if status.st_size == 0:
        raise InvalidInput(f"'{path}' is empty: give a file with text in it.")


def _decode(path: Path, data: bytes, where: str = "") -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"'{path}' is not UTF-8 text: byte {error.start}{where} is 0x{data[error.start]:02x} "
            f"({error.reason}). Save it as UTF-8, for example with `iconv -t utf-8`."
        ) from error


def _unreadable(path: Path, error: Exception) -> InvalidInput:
    return InvalidInput(f"'{path}' cannot be read ({error}): check the file and its permissions.")


def _read_txt(path: Path) -> Iterator[str]:
    try:
        data = path.read_bytes()  # not read_text, which would translate the line ends
    except OSError as error:
        raise _unreadable(path, error) from error
    yield _decode(path, data).removeprefix(BYTE_ORDER_MARK)


def _read_jsonl(path: Path) -> Iterator[str]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error
    with file:
        for number, line in enumerate(file, start=1):
            written = _decode(path, line, f" of line {number}")
            written = written.removeprefix(BYTE_ORDER_MARK) if number == 1 else written
            if written.strip():
                yield _document(path, number, written)


def _document(path: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        problem = f"is not JSON ({error})"
    else:
        text = value.get("text") if isinstance(value, dict) else value
        if isinstance(text, str) and not _SURROGATE.search(text):
            return text
        if isinstance(text, str):
            problem = "holds half of a surrogate pair, which is no character"
        else:
            problem = "has no string 'text'" if isinstance(value, dict) else f"is a JSON {type(value).__name__}"
    raise InvalidInput(
        f"Line {number} of '{path}' {problem}: each line must be a JSON object with a string field 'text', "
        f"or a JSON string. Correct or remove that line."
    )


def _read_parquet(path: Path) -> Iterator[str]:
    pyarrow = require("pyarrow", f"'{path}'")
    parquet = require("pyarrow.parquet", f"'{path}'")
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if "text" not in columns:
                raise InvalidInput(
                    f"'{path}' has no column 'text', only {', '.join(columns) or 'none at all'}: "
                    f"rename the column that holds the text to 'text'."
                )
            if file.metadata.num_rows == 0:
                raise InvalidInput(f"'{path}' has no rows: give a file with text in it.")
            number = 0
            for batch in file.iter_batches(columns=["text"]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    if not isinstance(text, str):
                        raise InvalidInput(
                            f"Row {number} of '{path}' has no string in the column 'text' but "
                            f"{type(text).__name__}: make every row a string, or remove that row."
                        )
                    yield text
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


_READERS: Mapping[str, Callable[[Path], Iterator[str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
