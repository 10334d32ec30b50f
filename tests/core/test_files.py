"""Files and directories that are written atomically."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest

from spirit_jax.core.errors import printable
from spirit_jax.core.files import (
    FileFormatError,
    atomic_directory,
    atomic_file,
    is_encodable,
    read_bytes,
    read_json,
    staging_directory,
    write_file,
)


def test_a_file_is_replaced_and_never_written_into(tmp_path):
    """A reader that holds the old file open, here under another name, continues to read the old content."""
    path = tmp_path / "new" / "file"
    write_file(path, "old")
    os.link(path, tmp_path / "held")
    write_file(path, b"new and longer")
    assert path.read_text() == "new and longer"
    assert (tmp_path / "held").read_text() == "old"
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def test_a_directory_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "part"

    def write(content: str, **options) -> None:
        with atomic_directory(path, **options) as scratch:
            (scratch / content).touch()
            assert not path.exists() or content not in os.listdir(path)
            if content == "broken":
                raise OSError("disk full")

    write("first")
    with pytest.raises(FileExistsError, match="part exists; remove it, choose another"):
        write("second")
    assert os.listdir(path) == ["first"]
    write("second", overwrite=True)
    with pytest.raises(OSError, match="disk full"):
        write("broken", overwrite=True)
    assert os.listdir(path) == ["second"]
    assert os.listdir(tmp_path) == ["part"]


def test_directories_of_killed_writers_are_removed_by_the_next_one(tmp_path):
    script = (
        "import os, sys\n"
        "from spirit_jax.core.files import atomic_directory\n"
        "with atomic_directory(sys.argv[1]) as scratch:\n"
        "    (scratch / 'half').touch()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    living = staging_directory(tmp_path, "one")
    living = living.rename(living.with_name(living.name.replace(f"-{os.getpid()}-", f"-{os.getppid()}-")))
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / name)], check=False)
    assert len(list(tmp_path.glob(".one.*"))) == 2
    with atomic_directory(tmp_path / "one") as scratch:
        (scratch / "whole").touch()
    assert [path.name for path in tmp_path.glob(".one.*")] == [living.name]
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == [".one.part", ".two.part", "one"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_names_the_file(tmp_path, number):
    for write in (lambda: atomic_file(tmp_path / "wanted"), lambda: atomic_directory(tmp_path / "wanted")):
        with pytest.raises(OSError, match=os.strerror(number) + ".*wanted"), write():
            raise OSError(number, os.strerror(number))
    assert not list(tmp_path.iterdir())


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 43)
    for path, message in [
        (tmp_path / "pipe", "pipe: is a device or a pipe"),
        (pathlib.Path("/dev/zero"), "/dev/zero: is a device"),
        (tmp_path, "[Ii]s a directory"),
        (tmp_path / "none", "none: cannot be read .No such file"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "zero\0byte", "not a path"),
        (tmp_path / "sparse", "too large"),
    ]:
        with pytest.raises(FileFormatError, match=message):
            read_bytes(path)


def test_json_is_bounded_in_depth(tmp_path):
    path = tmp_path / "a.json"
    for content in ("[" * 101 + "]" * 101, '{"a":' * 5000 + "1" + "}" * 5000, "[" * 10**6):
        path.write_text(content)
        with pytest.raises(FileFormatError, match=r"a.json: not JSON that can be read \(nested more than 100 deep\)"):
            read_json(path)
    wide = [["[" * 500, {"]": [1] * 200}]] * 200
    path.write_text(json.dumps(wide))
    assert read_json(path) == wide
    for content in ("{", "1" * 5000, "", "nul"):
        path.write_text(content)
        with pytest.raises(FileFormatError, match="a.json: not JSON"):
            read_json(path)


def test_text_that_utf8_cannot_hold_is_noticed_and_made_printable():
    assert is_encodable("Füße 🙂")
    for text in ("a\ud800b", json.loads('"\\udfff"')):
        assert not is_encodable(text)
        assert printable(text).encode()
    assert printable("a\ud800b") == "a\\ud800b"
