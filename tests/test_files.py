"""Files are written whole or not at all, and what the system refuses is one error."""

import contextlib
import os
import resource
import signal
import stat
import tempfile
from pathlib import Path

import pytest

from int8pass.errors import OutputError
from int8pass.files import require_writable, staged, write_bytes, write_text

NOBODY = 65534


@contextlib.contextmanager
def full_disk(nbytes):
    """The system refuses to write a file past `nbytes`, as a full disk does, to root too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@contextlib.contextmanager
def ordinary_user():
    """Permissions hold, for root too."""
    user = os.geteuid()
    os.seteuid(user or NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@contextlib.contextmanager
def read_only_folder():
    """A folder that any user may read and none may write to; pytest's own are for one user."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        folder = Path(name) / "read only"
        folder.mkdir(0o555)
        yield folder


def test_writes_utf8(tmp_path):
    write_text(tmp_path / "file.txt", "ä ≥ 6\n")
    assert (tmp_path / "file.txt").read_bytes() == "ä ≥ 6\n".encode()


def test_makes_missing_folders(tmp_path):
    write_text(tmp_path / "one" / "two" / "file.txt", "text")
    assert (tmp_path / "one" / "two" / "file.txt").read_text() == "text"


def test_takes_a_path_without_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(type(tmp_path)("file.txt"), "text")
    assert (tmp_path / "file.txt").read_text() == "text"


def test_replaces_a_file_and_leaves_no_other(tmp_path):
    for text in ("first and long", "second", ""):
        write_text(tmp_path / "file.txt", text)
        assert (tmp_path / "file.txt").read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_reader_of_the_old_file_keeps_it(tmp_path):
    write_text(tmp_path / "file.txt", "old")
    with open(tmp_path / "file.txt") as reader:
        write_text(tmp_path / "file.txt", "new")
        assert reader.read() == "old"


def test_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "file.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file.txt", "new \ud800")
    assert (tmp_path / "file.txt").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error, raised", ((OSError, OutputError), (KeyboardInterrupt, KeyboardInterrupt)))
def test_failed_renaming_leaves_the_old_file(error, raised, tmp_path, monkeypatch):
    write_text(tmp_path / "file.txt", "old")

    def fail(source, target):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(raised):
        write_text(tmp_path / "file.txt", "new")
    assert (tmp_path / "file.txt").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_folder_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "file.txt").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*file\.txt"):
        write_text(tmp_path / "file.txt", "new")
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain.txt").write_text("text")
    write_text(tmp_path / "file.txt", "text")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain.txt", "file.txt")}
    assert len(modes) == 1


def test_writes_bytes_of_any_buffer(tmp_path):
    write_bytes(tmp_path / "file.bin", memoryview(b"\x00\r\n\xff"))
    assert (tmp_path / "file.bin").read_bytes() == b"\x00\r\n\xff"
    assert [file.name for file in tmp_path.iterdir()] == ["file.bin"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "file.txt", "old")
    with full_disk(1000), pytest.raises(OutputError, match=r"cannot write .*file\.txt"):
        write_bytes(tmp_path / "file.txt", bytes(5000))
    assert (tmp_path / "file.txt").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_a_read_only_folder():
    with read_only_folder() as folder, ordinary_user():
        path = folder / "file.txt"
        for write in (require_writable, lambda path: write_text(path, "new")):
            with pytest.raises(OutputError, match="Permission denied"):
                write(path)
        with pytest.raises(OutputError, match="Permission denied"), staged(path):
            pass
        assert os.listdir(folder) == []


def test_a_folder_that_may_not_be_entered():
    with read_only_folder() as folder:
        folder.chmod(0o600)
        with ordinary_user(), pytest.raises(OutputError, match="Permission denied"):
            require_writable(folder / "new" / "file.txt")


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OutputError, match=r"cannot write .*new\.txt"):
        write_text(tmp_path / "file" / "new.txt", "new")
    assert (tmp_path / "file").read_text() == "old"
