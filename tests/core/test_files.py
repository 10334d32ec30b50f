"""Files and directories that are written atomically."""

import os

import pytest

from spirit_jax.core.files import atomic_directory, write_file


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
