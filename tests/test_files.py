import errno
import hashlib
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from quept import files
from quept.cli import console
from quept.config import PrecisionPlan
from quept.errors import InvalidInput, QueptError
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


def write(path: Path, text: str = "new") -> None:
    with replacing(path) as temporary:
        assert temporary != path
        temporary.write_text(text)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_a_link_stays_and_the_file_that_it_points_to_is_replaced(tmp_path, relative, exists):
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "b.json"
    if exists:
        target.write_text("old")
    (tmp_path / "first").symlink_to("there/b.json" if relative else target)
    (tmp_path / "a.json").symlink_to("first" if relative else tmp_path / "first")
    inode = target.stat().st_ino if exists else None
    write(tmp_path / "a.json")
    assert (tmp_path / "a.json").is_symlink()
    assert (tmp_path / "first").is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_ino != inode
    assert listed(tmp_path) == ["a.json", "first", "there"]
    assert listed(tmp_path / "there") == ["b.json"]


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(QueptError, match="could not be written"):
        write(tmp_path / "a")
    assert listed(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_written_through(tmp_path, linked):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write(tmp_path / ("link" if linked else "pipe"))
    assert os.read(reader, 100) == b"new"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    assert listed(tmp_path) == ["link", "pipe"]


@pytest.mark.parametrize("linked", [False, True])
def test_a_device_is_written_through_and_stays_one(tmp_path, linked):
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.open("wb").close()
    except OSError:
        pytest.skip("only root may make devices, where they are allowed")
    (tmp_path / "link").symlink_to(device)
    before = device.lstat()
    write(tmp_path / "link" if linked else device)
    after = device.lstat()
    assert (after.st_ino, after.st_mode, after.st_rdev) == (before.st_ino, before.st_mode, before.st_rdev)
    assert listed(tmp_path) == ["link", "null"]


def test_a_block_device_is_refused(tmp_path):
    try:
        os.mknod(tmp_path / "disk", 0o600 | stat.S_IFBLK, os.makedev(7, 250))
    except OSError:
        pytest.skip("only root may make devices")
    with pytest.raises(InvalidInput, match="is a block device"):
        write(tmp_path / "disk")


def test_a_socket_is_refused_and_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # paths of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("server")
        with pytest.raises(QueptError, match="could not be written"):
            write(tmp_path / "server")
    assert (tmp_path / "server").is_socket()


def test_a_directory_is_refused_by_its_name(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    for name in ("there", "link"):
        with pytest.raises(InvalidInput, match=f"{name} is a directory"):
            write(tmp_path / name)
    assert listed(tmp_path) == ["link", "there"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_what_a_descriptor_is_open_for_is_written_in_its_order(tmp_path):
    """As `quept ... --json /dev/stdout > file` does, where the file must not be replaced under the shell's hands."""
    (tmp_path / "printed").write_text("")
    code = """
import sys
from pathlib import Path
from quept.files import replacing
print("before")
for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"):
    with replacing(Path(name)) as temporary:
        temporary.write_text(name + chr(10))
print("after")
"""
    (tmp_path / "link").symlink_to("/dev/stdout")
    with (tmp_path / "printed").open("w") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True, cwd=tmp_path)
    expected = ["before", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link", "after"]
    assert (tmp_path / "printed").read_text().splitlines() == expected
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert piped.stdout.splitlines() == expected


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_a_file_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "a.json"
    path.write_text("old")
    path.chmod(mode)
    write(path)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_file_in_a_folder_that_takes_no_other_is_written_in_place(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old, and longer than the new content")
    inode = path.stat().st_ino

    def refuse(self: Path, *args: object, **more: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    write(path)
    assert path.read_text() == "new"
    assert path.stat().st_ino == inode
    with pytest.raises(QueptError, match="Read-only file system"):
        write(tmp_path / "new.json")


def test_a_file_that_is_mounted_is_written_in_place(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old, and longer than the new content")

    def busy(self: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    write(path)
    assert path.read_text() == "new"
    assert listed(tmp_path) == ["a.json"]


@pytest.mark.parametrize("name", ["a\0b", "a\udcff" * 3 + "\ud800"])
def test_what_is_no_path_is_refused(tmp_path, name):
    with pytest.raises(InvalidInput, match="is not a path"):
        write(tmp_path / name)


@pytest.mark.parametrize(
    "save",
    [
        lambda path: console.write_json(path, {"a": 1}),
        lambda path: PrecisionPlan.uniform(["a"], 4).write(path),
        lambda path: files.write_json(path, {"a": 1}),
    ],
    ids=["--json", "a plan", "front.json"],
)
def test_every_output_file_leaves_links_and_pipes_what_they_are(tmp_path, save):
    (tmp_path / "link").symlink_to("target")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    save(tmp_path / "link")
    save(tmp_path / "pipe")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "pipe").is_fifo()
    assert os.read(reader, 10_000) == (tmp_path / "target").read_bytes() != b""
    os.close(reader)
    assert listed(tmp_path) == ["link", "pipe", "target"]
