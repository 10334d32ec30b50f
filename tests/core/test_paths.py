"""Paths that a user types, and folders with links."""

import os
import pathlib

import pytest

from spirit_jax.core.paths import PathError, local_path, match_files, walk_files


def test_home_is_expanded_and_buckets_are_refused(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("~/records", "--output") == "/home/me/records"
    assert local_path("out/a#b?%20", "--output") == "out/a#b?%20"
    for argument in ("gs://bucket/records", "s3://bucket", "hdfs:/x", "https://example.org/a.wav"):
        with pytest.raises(PathError, match=f"--output {argument}: .*:// is not read or written; use a local path"):
            local_path(argument, "--output")
    for argument in ("", "a\0b"):
        with pytest.raises(PathError, match="--input .*not a path"):
            local_path(argument, "--input")


@pytest.fixture
def linked(tmp_path, monkeypatch):
    """Folders outside, linked into a corpus that has two loops, a link to nothing and a second name of a file."""
    for name in ("corpus/a.wav", "corpus/real/b.wav", "disk/c.wav", "disk/deep/d.wav", "corpus/.hidden/e.wav"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    for link, target in [
        ("corpus/again", "real"),
        ("corpus/disk", "../disk"),
        ("corpus/disk2", "../disk"),
        ("corpus/loop", "../corpus"),
        ("disk/loop", "../corpus"),
        ("corpus/nothing", "nowhere"),
        ("corpus/itself", "itself"),
        ("corpus/A.wav", "a.wav"),
    ]:
        os.symlink(target, link)


def test_a_folder_with_links_gives_each_file_once(linked):
    found = [path.as_posix() for path in walk_files("corpus")]
    assert sorted(found) == [
        "corpus/.hidden/e.wav",
        "corpus/a.wav",
        "corpus/disk/c.wav",
        "corpus/disk/deep/d.wav",
        "corpus/real/b.wav",
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("corpus/**/*.wav", ["corpus/a.wav", "corpus/disk/c.wav", "corpus/disk/deep/d.wav", "corpus/real/b.wav"]),
        ("corpus/*.wav", ["corpus/a.wav"]),
        ("corpus/disk*/**/[cd].wav", ["corpus/disk/c.wav", "corpus/disk/deep/d.wav"]),
        ("corpus/*/b.wav", ["corpus/real/b.wav"]),
        ("corpus/none/*.wav", []),
    ],
)
def test_a_glob_with_links_gives_each_file_once(linked, pattern, expected):
    assert [path.as_posix() for path in match_files(pattern)] == expected
    absolute = [str(pathlib.Path.cwd() / path) for path in expected]
    assert [str(path) for path in match_files(str(pathlib.Path.cwd() / pattern))] == absolute
