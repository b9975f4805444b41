import errno
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from quept.errors import CorruptArtifact, QueptError
from quept.storage import tensors as tensors_module
from quept.storage.tensors import read_note, read_shards, shards_of, write_shards

# Four bytes a number: 40, 8, 4, 0 and 60 bytes.
TENSORS = {
    "block.weight": torch.arange(10.0).reshape(2, 5),
    "block.A": torch.tensor([1.5, -0.0]),
    "block.scalar": torch.tensor(float("inf")),
    "block.empty": torch.zeros(0, 3),
    "block.clipping": torch.full((3, 5), -1e-40),
}
NAMES = ["elastic.safetensors", "elastic-part2.safetensors", "elastic-part3.safetensors"]


def listed(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def same(one, other):
    """Equal in names, dtypes, shapes and every bit."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].contiguous().numpy().tobytes() == other[name].contiguous().numpy().tobytes()
        for name in one
    )


@pytest.mark.parametrize("limit", [1, 8, 40, 48, 60, 111, 112, 10**9])
def test_tensors_come_back_bit_for_bit_from_shards_within_the_limit(tmp_path, limit):
    paths = write_shards(tmp_path, "elastic", TENSORS, limit)
    assert same(read_shards(paths), TENSORS)
    held = [read_shards([path]) for path in paths]
    assert sum(len(part) for part in held) == len(TENSORS)
    for part in held:
        # A tensor above the limit has a shard of its own.
        assert sum(tensor.numel() * 4 for tensor in part.values()) <= limit or len(part) == 1
    assert listed(tmp_path) == sorted(path.name for path in paths)
    assert (len(paths) == 1) == (limit >= 112)


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 80))
@settings(deadline=None, max_examples=25)
def test_any_tensors_come_back_from_their_shards(tmp_path_factory, sizes, limit):
    directory = tmp_path_factory.mktemp("shards")
    tensors = {f"t{index}": torch.full((size,), float(index)) for index, size in enumerate(sizes)}
    paths = write_shards(directory, "elastic", tensors, limit)
    assert same(read_shards(reversed(paths)), tensors)
    assert set(shards_of(directory, "elastic")) == set(paths)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool])
def test_every_dtype_is_kept(tmp_path, dtype):
    tensors = {"a": torch.tensor([0, 1, 0, 1]).to(dtype)}
    assert same(read_shards(write_shards(tmp_path, "elastic", tensors)), tensors)


def test_bfloat16_is_kept(tmp_path):
    tensors = {"a": torch.randn(5).bfloat16()}
    read = read_shards(write_shards(tmp_path, "elastic", tensors))["a"]
    assert read.dtype == torch.bfloat16
    assert torch.equal(read, tensors["a"])


@pytest.mark.parametrize("note", [None, "checked"])
def test_the_same_tensors_give_the_same_bytes(tmp_path, note):
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        copies = {key: value.clone() for key, value in TENSORS.items()}
        paths = write_shards(tmp_path / name, "elastic", copies, 60, note)
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("note", [None, "", "two\nlines and \u00fc"])
def test_the_note_comes_back_from_the_first_shard_alone(tmp_path, note):
    paths = write_shards(tmp_path, "elastic", TENSORS, 48, note)
    assert [read_note(path) for path in paths] == [note, None, None]
    with safe_open(paths[0], framework="pt") as file:
        # More than one entry would come in any order, and the bytes with it.
        assert len(file.metadata() or {}) == (note is not None)
    assert same(read_shards(paths), TENSORS)


def test_the_note_of_a_damaged_shard_is_refused(tmp_path):
    path = tmp_path / NAMES[0]
    path.write_bytes(b"\xff" * 64)
    for damaged in (path, tmp_path / "missing.safetensors"):
        with pytest.raises(CorruptArtifact) as caught:
            read_note(damaged)
        assert str(damaged) in str(caught.value)


def test_the_first_shard_is_written_last_and_vouches_for_the_others(tmp_path, monkeypatch):
    order, original = [], tensors_module.save_file

    def recording(tensors, path, metadata=None):
        assert shards_of(tmp_path, "elastic") == []
        order.append(path.name)
        original(tensors, path, metadata=metadata)

    monkeypatch.setattr(tensors_module, "save_file", recording)
    paths = write_shards(tmp_path, "elastic", TENSORS, 48)
    assert [path.name for path in paths] == NAMES
    stems = ["elastic-part3", "elastic-part2", "elastic"]
    assert [name.partition(".safetensors")[0] for name in order] == stems
    assert shards_of(tmp_path, "elastic") == paths


def test_shards_of_one_stem_are_not_those_of_another(tmp_path):
    write_shards(tmp_path, "elastic-00001-of-00012", TENSORS, 1)
    write_shards(tmp_path, "elastic-00001-of-00123", {"a": torch.zeros(1)})
    assert len(shards_of(tmp_path, "elastic-00001-of-00012")) == len(TENSORS)
    assert len(shards_of(tmp_path, "elastic-00001-of-00123")) == 1
    assert shards_of(tmp_path, "elastic-00001") == []


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["OSError", "SafetensorError"],
)
def test_a_full_disk_leaves_no_half_written_shard_and_no_first_one(tmp_path, monkeypatch, failure):
    original, written = tensors_module.save_file, []

    def full(tensors, path, metadata=None):
        if written:
            path.write_bytes(b"half a shard")
            raise failure
        written.append(path)
        original(tensors, path, metadata=metadata)

    monkeypatch.setattr(tensors_module, "save_file", full)
    with pytest.raises(QueptError, match="disk is full") as caught:
        write_shards(tmp_path, "elastic", TENSORS, 48)
    assert str(tmp_path / NAMES[1]) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert listed(tmp_path) == [NAMES[2]]
    assert shards_of(tmp_path, "elastic") == []


def test_a_shard_cut_anywhere_is_refused_with_its_name(tmp_path):
    (path,) = write_shards(tmp_path, "elastic", TENSORS)
    content = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptArtifact, match="truncated or not a safetensors file") as caught:
            read_shards([path])
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 64,
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x10\0\0\0\0\0\0\0" + b"{" * 16,
        b'{"a": 1}',
        b"PK\x03\x04" + b"\0" * 100,
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / NAMES[0]
    path.write_bytes(content)
    with pytest.raises(CorruptArtifact) as caught:
        read_shards([path])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_and_a_directory_are_refused(tmp_path):
    for path in (tmp_path / NAMES[0], tmp_path):
        with pytest.raises(CorruptArtifact) as caught:
            read_shards([path])
        assert str(path) in str(caught.value)


def test_a_tensor_in_two_shards_is_refused_with_its_name(tmp_path):
    one = write_shards(tmp_path, "one", {"a": torch.zeros(1), "b": torch.zeros(1)})
    two = write_shards(tmp_path, "two", {"c": torch.zeros(1), "b": torch.ones(1)})
    with pytest.raises(CorruptArtifact, match=r"two\.safetensors holds the tensor b, as another"):
        read_shards(one + two)
