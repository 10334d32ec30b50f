"""Jobs change a target atomically."""

import pathlib
import shutil

import pytest

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
