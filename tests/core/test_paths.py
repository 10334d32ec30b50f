"""Paths that a user types, and folders with links."""

import os
import pathlib

import pytest

from spirit_jax.core.paths import PathError, check_links, local_path, match_files, walk_files


def test_home_is_expanded_and_buckets_are_refused(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("~/records", "--output") == "/home/me/records"
    assert local_path("out/a#b?%20", "--output") == "out/a#b?%20"
    for argument in ("s3://bucket", "hdfs:/x", "https://example.org/a.wav"):
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


@pytest.mark.parametrize("kind", ["file", "folder", "folder above", "deep", "chain", "dangling"])
def test_links_that_leave_a_tree_are_refused_by_name(kind, tmp_path):
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    (outside / "sub").mkdir(parents=True)
    (outside / "secret").write_text("secret")
    (tree / "part").mkdir(parents=True)
    (tree / "part" / "weights").write_text("")
    place = tree / "part"
    if kind == "folder above":
        (tree / "link").symlink_to(outside)
        place = tree / "link" / "sub"
    elif kind == "deep":
        (tree / "other").mkdir()
        (tree / "other" / "link").symlink_to(outside / "secret")
        (place / "inside").symlink_to(tree / "other")
    elif kind == "chain":
        (tree / "link").symlink_to("../outside/secret")
        (place / "inside").symlink_to("../link")
    else:
        target = {"file": outside / "secret", "folder": outside, "dangling": "../../nothing"}[kind]
        (place / "link").symlink_to(target)
    with pytest.raises(PathError, match=r"outside .*tree: refused; put a copy"):
        check_links(place, tree)


def test_links_within_a_tree_and_to_a_tree_are_followed(tmp_path):
    tree = tmp_path / "tree"
    (tree / "part").mkdir(parents=True)
    (tree / "part" / "weights").write_text("")
    (tree / "part" / "loop").symlink_to(tree)
    (tree / "part" / "copy").symlink_to("weights")
    (tree / "part" / "self").symlink_to("self")
    (tmp_path / "link").symlink_to(tree)
    check_links(tree / "part", tree)
    check_links(tmp_path / "link" / "part", tmp_path / "link")
    check_links(tree / "part" / "weights", tree)


@pytest.mark.parametrize("below", ["", "spiritlm_model/base"])
def test_a_snapshot_in_the_cache_of_hugging_face_links_to_its_blobs(below, tmp_path):
    cache = tmp_path / "hub"
    snapshot = cache / "models--org--name" / "snapshots" / "0123" / below
    blobs = cache / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to(os.path.relpath(blobs / "abc", snapshot))
    check_links(snapshot, snapshot)
    (tmp_path / "secret").write_text("")
    for target in (tmp_path / "secret", cache / "models--org--name" / "refs", cache / "models--org--other" / "blobs"):
        (snapshot / "link").symlink_to(target)
        with pytest.raises(PathError, match="outside"):
            check_links(snapshot, snapshot)
        (snapshot / "link").unlink()
    (blobs / "abc").unlink()
    (blobs / "abc").symlink_to(tmp_path / "secret")  # what lies behind a blob counts too
    with pytest.raises(PathError, match="outside"):
        check_links(snapshot, snapshot)
