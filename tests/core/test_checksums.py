"""Sealing of a directory with checksums. tests/training/test_checkpoints.py has the tests on a training step."""

import pathlib

import pytest

from spirit_jax.core.checksums import find_damage, read_checksums, write_checksums
from spirit_jax.core.files import FileFormatError


@pytest.fixture
def sealed(tmp_path):
    """A sealed directory with two files in different folders."""
    for name in ("llm/weights", "optimizer/state"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(name.encode())
    write_checksums(tmp_path)
    return tmp_path


def test_damage_is_found_only_within_the_given_part(sealed):
    assert find_damage(sealed) is None
    (sealed / "optimizer/state").write_bytes(b"other")
    assert find_damage(sealed, within="llm") is None
    assert "optimizer/state: is not as it was written" in str(find_damage(sealed))


def test_a_missing_file_is_damage(sealed):
    (sealed / "llm/weights").unlink()
    assert "llm/weights: is not as it was written" in str(find_damage(sealed))


def test_a_directory_is_sealed_when_all_processes_have_written_their_share(sealed):
    (sealed / "checksums-00000-of-00001.json").unlink()
    write_checksums(sealed, 0, 2)
    assert read_checksums(sealed) is None
    write_checksums(sealed, 1, 2)
    assert sorted(read_checksums(sealed) or ()) == ["llm/weights", "optimizer/state"]


def test_damaged_checksums_do_not_seal_a_directory(sealed):
    (sealed / "checksums-00000-of-00001.json").write_bytes(b'{"llm')
    assert read_checksums(sealed) is None


def test_unreadable_checksums_raise_an_error(sealed: pathlib.Path):
    """A disk that fails for a moment must not make a complete step look incomplete."""
    path = sealed / "checksums-00000-of-00001.json"
    path.unlink()
    path.symlink_to(path)  # opening a link to itself raises an OSError
    with pytest.raises(FileFormatError, match="checksums-00000"):
        read_checksums(sealed)
