"""write_text: whole files or none."""

import os
import stat

import pytest

from int8pass.files import write_bytes, write_text


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


@pytest.mark.parametrize("error", (OSError, KeyboardInterrupt))
def test_failed_renaming_leaves_the_old_file(error, tmp_path, monkeypatch):
    write_text(tmp_path / "file.txt", "old")

    def fail(source, target):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(error):
        write_text(tmp_path / "file.txt", "new")
    assert (tmp_path / "file.txt").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_folder_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "file.txt").mkdir()
    with pytest.raises(OSError):
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
