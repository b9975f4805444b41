import errno
import hashlib
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from quept.errors import QueptError
from quept.files import replacing, sha256

FAILURES = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
    SafetensorError("I/O error: No space left on device (os error 28)"),
    KeyError("a mistake"),
    KeyboardInterrupt(),
]


def listed(directory):
    return sorted(path.name for path in directory.iterdir())


def test_the_new_content_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary != path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert listed(tmp_path) == ["a.json"]


def test_a_new_file_is_not_there_before_it_is_whole(tmp_path):
    path = tmp_path / "a.json"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_halfway_keeps_the_old_content_and_leaves_nothing_behind(tmp_path, failure, exists):
    path = tmp_path / "a.json"
    if exists:
        path.write_text("old")
    expected = QueptError if isinstance(failure, OSError | SafetensorError) else type(failure)

    def fail_halfway():
        with replacing(path) as temporary:
            temporary.write_text("hal")
            raise failure

    with pytest.raises(expected):
        fail_halfway()
    assert listed(tmp_path) == ["a.json"] * exists
    assert not exists or path.read_text() == "old"


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_failure_after_writing_keeps_the_old_content_too(tmp_path, monkeypatch, stage):
    path = tmp_path / "a.json"
    path.write_text("old")

    def refuse(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(*((os, "fsync") if stage == "fsync" else (Path, "replace")), refuse)
    with pytest.raises(QueptError, match="Input/output error"), replacing(path) as temporary:
        temporary.write_text("new")
    monkeypatch.undo()
    assert listed(tmp_path) == ["a.json"]
    assert path.read_text() == "old"


def test_the_content_reaches_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr(Path, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    with replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("new")
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("failure", [failure for failure in FAILURES if "No space" in str(failure)], ids=repr)
def test_a_full_disk_is_told_in_one_paragraph_with_the_file(tmp_path, failure):
    path = tmp_path / "a.json"
    with pytest.raises(QueptError, match="disk is full") as caught, replacing(path):
        raise failure
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_left_a_temporary_file_behind_earlier_does_not_matter(tmp_path):
    with replacing(tmp_path / "a.json") as temporary:
        leftover = temporary
    leftover.write_text("left by a killed process, longer than the new content")
    with replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.json").read_text() == "new"
    assert listed(tmp_path) == ["a.json"]


@pytest.mark.parametrize("name", ["missing/a.json", "file/a.json", "x" * 250])
def test_a_place_that_cannot_be_written_is_refused_with_its_path(tmp_path, name):
    """Removing the temporary file fails there too, which must not hide why writing failed."""
    (tmp_path / "file").write_text("no directory")
    path = tmp_path / name
    with pytest.raises(QueptError, match="could not be written") as caught, replacing(path) as temporary:
        temporary.write_text("new")
    assert str(path) in str(caught.value)
    assert listed(tmp_path) == ["file"]


@pytest.mark.parametrize("leftover", [False, True])
def test_a_file_may_be_read_by_whom_the_umask_allows_whatever_its_writer_asks_for(tmp_path, leftover):
    plain = tmp_path / "plain"
    plain.touch()
    with replacing(tmp_path / "a.json") as temporary:
        private = temporary
    if leftover:
        private.touch(mode=0o600)
    with replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("new")
        temporary.chmod(0o600)
    assert (tmp_path / "a.json").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("content", [b"", b"abc", bytes(range(256)) * 5000])
def test_the_digest_of_a_file_is_its_sha256(tmp_path, content):
    path = tmp_path / "a"
    path.write_bytes(content)
    assert sha256(path) == hashlib.sha256(content).hexdigest()
