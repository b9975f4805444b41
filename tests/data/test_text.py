import hashlib
import json
import logging
import struct
import sys

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from quept.data import digest, load_text, token_stream, token_windows
from quept.data import tokens as tokens_module
from quept.data.hub import HUB_TEXTS
from quept.errors import InvalidInput


def byte_tokenizer():
    """A token for each byte, with a short model_max_length and a special token it would add."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(["<s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", model_max_length=16)


TOKENIZER = byte_tokenizer()


def ids_of(text):
    return TOKENIZER(text, add_special_tokens=False, verbose=False)["input_ids"]


def numbered_text(lines):
    return "".join(f"line {number} of the text\n" for number in range(lines))


def write(path, documents):
    if path.suffix == ".txt":
        path.write_text("\n\n".join(documents), encoding="utf-8", newline="")
    elif path.suffix == ".jsonl":
        rows = [json.dumps({"text": d, "n": 1} if i % 2 else d) for i, d in enumerate(documents)]
        path.write_text("\n".join(rows), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"n": range(len(documents)), "text": documents}), path)
    return path


@pytest.mark.parametrize("name", ["a[1].parquet", "b*.jsonl", "c{0..1}.txt"])
def test_a_path_is_no_pattern(tmp_path, name):
    assert list(load_text(write(tmp_path / name, ["one"]), split="train")) == ["one"]


@pytest.fixture
def text_file(tmp_path):
    return write(tmp_path / "text.txt", [numbered_text(200)])


def test_a_txt_file_is_one_document_as_it_is(tmp_path):
    path = tmp_path / "a.TXT"
    path.write_bytes("\ufeffone\r\ntwo\n\nünf\n".encode())
    assert list(load_text(path, split="test")) == ["one\r\ntwo\n\nünf\n"]
    assert list(load_text(str(path), split="train")) == ["one\r\ntwo\n\nünf\n"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_documents_of_a_file_in_order(tmp_path, suffix):
    documents = ["eins\n", "", "zwei \u2028 drei", "  "]
    assert list(load_text(write(tmp_path / f"a{suffix}", documents), split="train")) == documents


def test_documents_are_read_lazily(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('"good"\nbad\n')
    documents = load_text(path, split="train")
    assert next(documents) == "good"
    with pytest.raises(InvalidInput, match="Line 2"):
        next(documents)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@settings(max_examples=15, deadline=None)
@given(
    documents=st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=6),
    piece=st.integers(1, 40),
)
def test_jsonl_and_parquet_give_the_tokens_of_the_joined_text(tmp_path_factory, suffix, documents, piece):
    folder = tmp_path_factory.mktemp("same")
    expected = ids_of("\n\n".join(documents))
    if not expected:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens_module, "_PIECE", piece)
        for path in (folder / "a.txt", folder / f"a{suffix}"):
            stream = token_stream(write(path, documents), TOKENIZER, max_tokens=None)
            assert stream.dtype == torch.int64
            assert stream.tolist() == expected


@settings(deadline=None)
@given(parts=st.lists(st.text("ab\n", max_size=20), max_size=8), piece=st.integers(1, 12))
def test_pieces_depend_on_the_text_alone_and_end_at_line_ends(parts, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens_module, "_PIECE", piece)
        pieces = list(tokens_module._pieces(iter(parts)))
        assert pieces == list(tokens_module._pieces(iter(["".join(parts)])))
    assert "".join(pieces) == "".join(parts)
    for cut in pieces[:-1]:
        assert len(cut) >= piece
        assert cut.endswith("\n")
        assert "\n" not in cut[piece - 1 : -1]


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 20), length=st.integers(1, 40), seed=st.integers(0, 2**63 - 1))
def test_windows_are_distinct_aligned_slices_of_the_stream(tmp_path_factory, samples, length, seed):
    path = write(tmp_path_factory.mktemp("windows") / "a.txt", [numbered_text(200)])
    asked = {"samples": samples, "sequence_length": length, "seed": seed}
    windows = token_windows(path, TOKENIZER, **asked)
    assert windows.shape == (samples, length)
    assert windows.dtype == torch.int64
    assert torch.equal(windows, token_windows(path, TOKENIZER, **asked))
    stream = token_stream(path, TOKENIZER, max_tokens=4 * samples * length, split="train")
    grid = [tuple(window.tolist()) for window in stream.split(length) if len(window) == length]
    for window in windows:
        grid.remove(tuple(window.tolist()))  # raises if taken twice, or not a window of the grid


def token_grid(path):
    stream = token_stream(path, TOKENIZER, max_tokens=None)
    return stream[: len(stream) // 32 * 32].view(-1, 32)


def test_windows_differ_with_the_seed_and_come_in_random_order(text_file):
    def draw(seed):
        return token_windows(text_file, TOKENIZER, samples=16, sequence_length=32, seed=seed)

    assert not torch.equal(draw(0), draw(1))
    starts = [int(((token_grid(text_file) == window).all(dim=1)).nonzero()) for window in draw(0)]
    assert starts != sorted(starts)


def test_the_stream_is_cut_to_max_tokens(text_file):
    stream = token_stream(text_file, TOKENIZER, max_tokens=None)
    assert stream.tolist() == ids_of(numbered_text(200))
    assert torch.equal(token_stream(text_file, TOKENIZER, max_tokens=7), stream[:7])
    assert torch.equal(token_stream(text_file, TOKENIZER, max_tokens=10**9), stream)


def test_reading_stops_after_enough_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens_module, "_PIECE", 10)
    path = tmp_path / "a.jsonl"
    path.write_text('"0123456789"\n' * 20 + "bad\n")
    assert token_windows(path, TOKENIZER, samples=2, sequence_length=10, seed=0).shape == (2, 10)
    with pytest.raises(InvalidInput, match="Line 21"):
        token_stream(path, TOKENIZER, max_tokens=None)


def test_long_texts_make_no_noise(text_file, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        assert len(token_stream(text_file, TOKENIZER, max_tokens=None)) > TOKENIZER.model_max_length
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_too_little_text_says_what_is_needed(text_file):
    available = len(ids_of(numbered_text(200)))
    with pytest.raises(InvalidInput, match=rf"{available} tokens, .* 100000.*--samples or --sequence-length"):
        token_windows(text_file, TOKENIZER, samples=1000, sequence_length=100, seed=0)


def test_just_enough_text(tmp_path):
    path = write(tmp_path / "a.txt", ["xy" * 6])
    assert len(token_windows(path, TOKENIZER, samples=3, sequence_length=4, seed=0)) == 3
    with pytest.raises(InvalidInput, match="12 tokens"):
        token_windows(path, TOKENIZER, samples=13, sequence_length=1, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "--samples"),
        ({"sequence_length": 0}, "--sequence-length"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**63}, "--seed"),
    ],
)
def test_numbers_out_of_range(text_file, arguments, message):
    with pytest.raises(InvalidInput, match=message):
        token_windows(text_file, TOKENIZER, **{"samples": 1, "sequence_length": 8, "seed": 0} | arguments)


def test_max_tokens_out_of_range(text_file):
    with pytest.raises(InvalidInput, match="--max-tokens"):
        token_stream(text_file, TOKENIZER, max_tokens=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.jsonl", b"", "is empty"),
        ("a.parquet", b"", "is empty"),
        ("a.txt", b"good \xff", "not UTF-8.*byte 5 is 0xff"),
        ("a.jsonl", b'"good"\n"\xff"', "byte 1 of line 2"),
        ("a.jsonl", b'"good"\n{"text": ', "Line 2 .*not JSON"),
        ("a.jsonl", b'{"body": "x"}', "Line 1 .*no string 'text'"),
        ("a.jsonl", b'{"text": null}', "Line 1 .*no string 'text'"),
        ("a.jsonl", b"[1]", "Line 1 .*is a JSON list"),
        ("a.parquet", b"not parquet at all", "cannot be read"),
        ("a.csv", b"text", r"unknown kind \('.csv'\).*\.txt, \.jsonl, \.parquet.*redpajama"),
        ("a", b"text", "unknown kind"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=message) as caught:
        list(load_text(path, split="train"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"body": ["x"], "id": [1]}, "no column 'text', only body, id"),
        ({"text": pyarrow.array([], pyarrow.string())}, "no rows"),
        ({"text": ["x", None]}, "Row 2 .*NoneType"),
        ({"text": [1]}, "Row 1 .*int"),
    ],
)
def test_bad_parquet_tables(tmp_path, table, message):
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match=message):
        list(load_text(tmp_path / "a.parquet", split="train"))


def test_damaged_parquet(tmp_path):
    path = write(tmp_path / "a.parquet", [numbered_text(5000)])
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="cannot be read"):
        list(load_text(path, split="train"))


@pytest.mark.parametrize("source", ["no/such/file.txt", "wikitext", "", "x" * 5000, "nul\0"])
def test_a_source_that_does_not_exist_lists_what_does(source):
    with pytest.raises(InvalidInput, match=r"\.txt, \.jsonl, \.parquet.*wikitext2, ptb, c4, pile, redpajama"):
        load_text(source, split="train")


def test_a_directory_is_refused_and_a_path_is_never_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c4").mkdir()
    with pytest.raises(InvalidInput, match="is a directory"):
        load_text("./c4", split="train")


@pytest.mark.parametrize("documents", [["", ""], [""]])
def test_text_without_tokens(tmp_path, documents, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(document) for document in documents))
    with pytest.raises(InvalidInput, match="tokens, but 1 windows"):
        token_windows(path, TOKENIZER, samples=1, sequence_length=8, seed=0)
    if len(documents) == 1:  # two empty documents are joined to a blank line
        with pytest.raises(InvalidInput, match="holds no text"):
            token_stream(path, TOKENIZER, max_tokens=None)


class FakeHub:
    def __init__(self, rows):
        self.rows, self.calls, self.given = rows, [], 0

    def load_dataset(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        for row in self.rows:
            if isinstance(row, Exception):
                raise row
            self.given += 1
            yield row


def fake_hub(monkeypatch, rows):
    hub = FakeHub(rows)
    monkeypatch.setattr("datasets.load_dataset", hub.load_dataset)
    return hub


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", HUB_TEXTS)
def test_a_named_data_set_is_streamed_from_its_files(monkeypatch, name, split):
    source = HUB_TEXTS[name]
    hub = fake_hub(monkeypatch, [{source.field: "one\n", "n": 1}, {source.field: "two\n", "n": 2}])
    if split not in source.files:
        with pytest.raises(InvalidInput, match=f"no split '{split}', only train"):
            load_text(name, split=split)
        return
    assert list(load_text(name, split=split)) == ["one\n", "two\n"]
    expected = {"data_files": {split: source.files[split]}, "split": split, "streaming": True}
    assert hub.calls == [((source.format,), expected)]
    stream = token_stream(name, TOKENIZER, max_tokens=None, split=split)
    assert stream.tolist() == ids_of("one\n\n\ntwo\n")


def test_a_stream_is_read_only_as_far_as_needed(monkeypatch):
    monkeypatch.setattr(tokens_module, "_PIECE", 10)
    hub = fake_hub(monkeypatch, [{"text": "0123456789"} for _ in range(1000)])
    assert token_windows("c4", TOKENIZER, samples=2, sequence_length=10, seed=0).shape == (2, 10)
    assert 8 <= hub.given <= 10


def test_an_unreachable_hub_points_to_local_files(monkeypatch):
    rows = [{"text": "one"}, ConnectionError("no\nroute")]
    fake_hub(monkeypatch, rows)
    with pytest.raises(InvalidInput, match=r"'c4' could not be read .*no route.*local\s+\.txt"):
        list(load_text("c4", split="train"))


@pytest.mark.parametrize("row", [{"body": "x"}, {"text": None}])
def test_a_hub_row_without_text(monkeypatch, row):
    fake_hub(monkeypatch, [row])
    with pytest.raises(InvalidInput, match="without text in 'text'"):
        list(load_text("c4", split="train"))


@pytest.mark.parametrize(("source", "module"), [("c4", "datasets"), ("a.parquet", "pyarrow")])
def test_a_missing_package_names_the_pip_command(tmp_path, monkeypatch, source, module):
    if "." in source:
        source = write(tmp_path / source, ["x"])
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InvalidInput, match=rf"'{module}', which is not installed.*pip install 'quept\[data\]'"):
        list(load_text(source, split="train"))


def test_digest_is_of_little_endian_int64():
    tokens = torch.tensor([[1, -2], [3, 2**40]])
    expected = hashlib.sha256(struct.pack("<4q", 1, -2, 3, 2**40)).hexdigest()
    assert digest(tokens) == digest(tokens.flatten()) == expected
    assert digest(torch.tensor([[1, 3], [-2, 2**40]]).T) == expected
    assert digest(torch.tensor([1, 2], dtype=torch.int32)) == digest(torch.tensor([1, 2]))
    assert digest(tokens[:1]) != expected


def test_blank_lines_and_byte_order_marks_are_no_text(tmp_path):
    lines = "\n" + json.dumps({"text": "one"}) + "\n\n  \r\n" + json.dumps("two") + "\n\n"
    for name, content in {"a.jsonl": lines, "b.jsonl": "\ufeff" + lines.lstrip()}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert list(load_text(tmp_path / name, split="train")) == ["one", "two"]
    (tmp_path / "a.txt").write_text("\ufeffone \ufeff two", encoding="utf-8")
    assert list(load_text(tmp_path / "a.txt", split="train")) == ["one \ufeff two"]


def test_windows_are_of_documents_that_hold_text(tmp_path):
    rows = [""] * 1000 + ["\n \t"] * 5 + [f"document {number} says something" for number in range(60)]
    texts = {"all": rows, "full": rows[1005:]}
    for name, documents in texts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in documents))
    notes = []
    asked = {"samples": 8, "sequence_length": 32, "seed": 0}
    found = token_windows(tmp_path / "all.jsonl", TOKENIZER, **asked, note=notes.append)
    assert torch.equal(found, token_windows(tmp_path / "full.jsonl", TOKENIZER, **asked))
    (note,) = notes
    assert "1005 documents hold nothing but blanks" in note


def test_windows_that_repeat_one_token_are_left_out(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a" * 320 + "".join(chr(97 + number % 26) for number in range(320)))
    notes = []
    found = token_windows(path, TOKENIZER, samples=9, sequence_length=32, seed=0, note=notes.append)
    assert all(len(set(window)) > 1 for window in found.tolist())
    (note,) = notes
    assert "10 of 20 windows repeat one token" in note
    with pytest.raises(InvalidInput, match="holds 10 windows of 32 tokens that do not repeat one token, but 11 are"):
        token_windows(path, TOKENIZER, samples=11, sequence_length=32, seed=0)
