"""The named text data sets, streamed from the Hugging Face hub as plain data files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from quept.errors import InvalidInput

Split = Literal["train", "test"]


@dataclass(frozen=True)
class HubText:
    """The files of a named data set and the join of its rows into one text.

    Files are named one by one, because some of these repositories still hold a loading script, which `datasets`
    refuses to run; their data files, or the hub's own conversion to parquet, need none.

    Attributes:
        format: File format.
        files: Address of the file of each split.
        field: Field of a row that holds the text.
        separator: Text between two rows.
    """

    format: Literal["parquet", "json"]
    files: Mapping[Split, str]
    field: str = "text"
    separator: str = "\n\n"


_CONVERTED = "refs%2Fconvert%2Fparquet"

HUB_TEXTS: Mapping[str, HubText] = {
    "wikitext2": HubText(
        "parquet",
        {
            "train": "hf://datasets/Salesforce/wikitext/wikitext-2-raw-v1/train-00000-of-00001.parquet",
            "test": "hf://datasets/Salesforce/wikitext/wikitext-2-raw-v1/test-00000-of-00001.parquet",
        },
    ),
    "ptb": HubText(
        "parquet",
        {
            "train": f"hf://datasets/ptb-text-only/ptb_text_only@{_CONVERTED}/penn_treebank/train/0000.parquet",
            "test": f"hf://datasets/ptb-text-only/ptb_text_only@{_CONVERTED}/penn_treebank/test/0000.parquet",
        },
        field="sentence",
    ),
    "c4": HubText(
        "json",
        {
            "train": "hf://datasets/allenai/c4/en/c4-train.00000-of-01024.json.gz",
            # C4 has no test split; the literature's perplexities are of this validation shard.
            "test": "hf://datasets/allenai/c4/en/c4-validation.00000-of-00008.json.gz",
        },
    ),
    "pile": HubText(
        "parquet",
        {
            "train": f"hf://datasets/monology/pile-uncopyrighted@{_CONVERTED}/default/partial-train/0000.parquet",
            "test": f"hf://datasets/monology/pile-uncopyrighted@{_CONVERTED}/default/partial-test/0000.parquet",
        },
    ),
    "redpajama": HubText(
        "json",
        # The most recent crawl of the sample: web crawls are three quarters of RedPajama.
        {"train": "hf://datasets/togethercomputer/RedPajama-Data-1T-Sample/cc_2023-06_sample.jsonl"},
    ),
}


def require(
    module: str, purpose: str, *, extra: str = "data", otherwise: str = ", or give a .txt or .jsonl file instead"
) -> Any:
    """Import an optional dependency.

    Args:
        module: Name of the module, as in an import.
        purpose: Feature or file that needs it, for the message.
        extra: Extra of quept that installs it.
        otherwise: An alternative to installing it, which ends the message.

    Raises:
        InvalidInput: The module is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InvalidInput(
            f"{purpose} needs the package '{module}', which is not installed: run "
            f"`pip install 'quept[{extra}]'`{otherwise}."
        ) from error


def read_hub(name: str, split: Split) -> Iterator[str]:
    """Stream the documents of a named data set; the first request is made when the first document is asked for.

    Raises:
        InvalidInput: At once if the data set has no such split or `datasets` is not installed; while reading, if the
            hub cannot be reached or a row has no text.
    """
    source = HUB_TEXTS[name]
    if split not in source.files:
        raise InvalidInput(
            f"The data set '{name}' has no split '{split}', only {', '.join(source.files)}: "
            f"choose another data set, or give a .txt, .jsonl or .parquet file."
        )
    return _stream(require("datasets", f"The data set '{name}'"), name, source, split)


def _stream(datasets: Any, name: str, source: HubText, split: Split) -> Iterator[str]:
    url = source.files[split]
    try:
        rows = datasets.load_dataset(source.format, data_files={split: url}, split=split, streaming=True)
        for row in rows:
            text = row.get(source.field)
            if not isinstance(text, str):
                raise InvalidInput(
                    f"The data set '{name}' ({url}) has a row without text in '{source.field}' (its fields: "
                    f"{', '.join(row)}): save the text as a .txt, .jsonl or .parquet file and give that."
                )
            yield text
    except InvalidInput:
        raise
    # The network or the hub has failed; every HTTP client raises classes of its own.
    except Exception as error:
        raise InvalidInput(
            f"The data set '{name}' could not be read from the Hugging Face hub ({url}): "
            f"{type(error).__name__}: {' '.join(str(error).split())} Check the network, or give a local "
            f".txt, .jsonl or .parquet file instead."
        ) from error
