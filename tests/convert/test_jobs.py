"""Jobs change a target atomically."""

import errno
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest

from spirit_jax.convert.command import main
from spirit_jax.convert.jobs import Job, run_jobs
from spirit_jax.convert.plans import plan_import


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_conversion_leaves_the_target_unchanged(existing, released, converted, tmp_path):
    target = tmp_path / "target"
    if existing:
        shutil.copytree(converted / "speech_tokenizer", target / "speech_tokenizer")
    before = sorted(str(path) for path in tmp_path.rglob("*"))

    def interrupt(size, total=[0]):  # noqa: B006 - a counter
        total[0] += size
        if total[0] > 10**6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(plan_import(released, model="base"), target, overwrite=existing, progress=interrupt)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_an_existing_target_is_replaced_only_with_overwrite(tmp_path):
    """Other parts of the target stay."""

    def write(staged: pathlib.Path, progress) -> None:
        (staged / "config.json").write_text("new")

    job = Job("llm", tmp_path, "config.json", 0, 0, (), write)
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_text("old")
    (target / "other").write_text("stays")
    with pytest.raises(FileExistsError, match="target exists; choose another, or say --overwrite"):
        run_jobs([job], target, overwrite=False)
    assert (target / "config.json").read_text() == "old"
    run_jobs([job], target, overwrite=True)
    assert {path.name: path.read_text() for path in target.iterdir()} == {"config.json": "new", "other": "stays"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target"]


def test_a_target_that_appears_during_a_conversion_is_not_changed(tmp_path):
    target = tmp_path / "target"

    def write(staged: pathlib.Path, progress) -> None:
        (staged / "config.json").write_text("second")
        target.mkdir()
        (target / "config.json").write_text("first")

    with pytest.raises(FileExistsError, match="target exists"):
        run_jobs([Job("llm", tmp_path, "config.json", 0, 0, (), write)], target, overwrite=False)
    assert (target / "config.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


SCRIPT = """
import os, resource, signal, sys
from pathlib import Path
from spirit_jax.convert.jobs import Job, run_jobs
from spirit_jax.core.files import write_file

def write(staged, progress):
    write_file(staged / "config.json", "x" * 5000)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)

run_jobs([Job("llm", Path(), "config.json", 0, 0, (), write)], Path(sys.argv[1]), overwrite=False)
"""


def test_what_a_killed_conversion_left_behind_is_removed_by_the_next_one(tmp_path):
    target = tmp_path / "target"
    killed = subprocess.run([sys.executable, "-c", SCRIPT, str(target), "kill"], check=False)
    assert killed.returncode == -9
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == [".target.part"]
    subprocess.run([sys.executable, "-c", SCRIPT, str(target), "finish"], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("part", [["--only", "vocoder"], ["--only", "llm", "--model", "base"]])
def test_a_full_disk_is_one_line_that_names_a_file_of_the_target(part, released, tmp_path):
    """A limit on the size of files stops writing as a full disk does."""
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "from spirit_jax.convert.command import main\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["import", "--source", released, "--target", tmp_path / "target", *part]
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert "error: [Errno" in last
    assert f"'{tmp_path}/target/" in last
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_directory_that_may_not_be_written_is_one_line(released, tmp_path, capsys, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", "/hidden/.target.part-1")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)  # root, as whom tests may run, may write everywhere
    arguments = ["import", "--source", str(released), "--target", str(tmp_path / "target"), "--only", "style"]
    with pytest.raises(SystemExit, match="1"):
        main(arguments)
    assert f"Permission denied: '{tmp_path}/target'" in capsys.readouterr().err
