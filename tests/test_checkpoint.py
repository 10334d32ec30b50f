"""Files and directories that appear whole or not at all, and which step of a run is its newest."""

import os

import pytest

from spirit_jax import checkpoint
from spirit_jax.core.files import atomic_directory, write_file


def test_the_newest_step_is_that_of_the_largest_number(tmp_path):
    """Not the last in the alphabet, nor one that is still being written."""
    assert checkpoint.latest_step(tmp_path) is None
    for name in ("9/llm", "90/llm", "100/llm", "110/optimizer", "120.orbax-checkpoint-tmp/llm"):
        (tmp_path / checkpoint.STEPS / name).mkdir(parents=True)
    assert checkpoint.latest_step(tmp_path) == tmp_path / checkpoint.STEPS / "100"


def test_a_file_is_replaced_and_never_written_into(tmp_path):
    """Who has the old file open, here under another name, goes on reading the old content; nothing else is left behind."""
    path = tmp_path / "new" / "file"
    write_file(path, "old")
    os.link(path, tmp_path / "held")
    write_file(path, b"new and longer")
    assert path.read_text() == "new and longer"
    assert (tmp_path / "held").read_text() == "old"
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
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


def test_parts_of_a_step_are_looked_for_in_its_run(tmp_path):
    step = tmp_path / checkpoint.STEPS / "5"
    (step / checkpoint.LLM).mkdir(parents=True)
    (tmp_path / checkpoint.TOKENIZER).mkdir()
    assert checkpoint.find(step, checkpoint.TOKENIZER) == tmp_path / checkpoint.TOKENIZER
    with pytest.raises(
        checkpoint.CheckpointError, match="no llm there, only .*; it is a training run: name one of its steps"
    ):
        checkpoint.find(tmp_path, checkpoint.LLM)
