"""Damage to a checkpoint is found before it is restored."""

import contextlib
import pathlib
import random
import resource
import shutil

import jax
import numpy as np
import pytest

from spirit_jax import checkpoint
from spirit_jax.core.checksums import find_damage, write_checksums
from spirit_jax.models import llama
from spirit_jax.training.checkpoints import RunCheckpoints, SaveError
from spirit_jax.training.config import CheckpointConfig
from spirit_jax.training.metrics import MetricsLog
from tests.support.steps import language_model_step, one_device

MODEL = llama.LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
)


@pytest.fixture(scope="module")
def train_step():
    return language_model_step(MODEL, one_device(rows=1), np.zeros(64, np.int32), steps=9)


@pytest.fixture(scope="module")
def three_steps(train_step, tmp_path_factory):
    """A run with the steps 1, 2 and 3, each with its own weights."""
    run = tmp_path_factory.mktemp("run")
    checkpoints = RunCheckpoints(run, CheckpointConfig())
    for step in (1, 2, 3):
        state = train_step.init(jax.random.key(step))
        checkpoints.save(state.replace(step=state.step + step), {"0": step})
    checkpoints.close()
    return run


@pytest.fixture
def run(three_steps, tmp_path):
    return shutil.copytree(three_steps, tmp_path / "run")


def _files(step):
    return [path for path in step.rglob("*") if path.is_file() and path.stat().st_size and "checksums" not in path.name]


def _flip(path, rng=random):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _weights(train_step, checkpoints, step):
    return jax.device_get(checkpoints.restore(step, train_step.abstract_state).params)


@contextlib.contextmanager
def _small_files(size):
    """A block in which no file grows beyond a size, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _save(checkpoints, state):
    checkpoints.save(state.replace(step=state.step + 9), {"0": 9})
    checkpoints.wait()


def test_a_step_that_cannot_be_saved_is_one_line_and_leaves_the_others(train_step, run):
    checkpoints = RunCheckpoints(run, CheckpointConfig())
    state = train_step.init(jax.random.key(0))
    with _small_files(1000), pytest.raises(SaveError, match=f"{run}/checkpoints/9: could not be saved") as failed:
        _save(checkpoints, state)
    assert "\n" not in str(failed.value)
    assert failed.value.exit_code == 1
    assert RunCheckpoints(run, CheckpointConfig()).steps == [1, 2, 3]


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    log = MetricsLog(tmp_path, 0)
    with _small_files(1000), pytest.raises(OSError, match="File too large") as failed:
        log.write(1, {f"loss_{number}": 1.0 for number in range(100)})
    assert failed.value.filename == str(tmp_path / "metrics.jsonl")


def test_an_intact_run_is_left_alone(train_step, run):
    checkpoints = RunCheckpoints(run, CheckpointConfig())
    assert checkpoints.steps == [1, 2, 3]
    expected = jax.device_get(train_step.init(jax.random.key(3)).params)
    jax.tree.map(np.testing.assert_array_equal, _weights(train_step, checkpoints, 3), expected)
    assert not (run / "damaged").exists()


def test_a_flipped_bit_in_any_file_is_found(run):
    step = run / "checkpoints" / "3"
    assert find_damage(step) is None
    for path in _files(step):
        whole = path.read_bytes()
        _flip(path)
        assert str(path.relative_to(step)) in str(find_damage(step))
        path.write_bytes(whole)
    assert find_damage(step) is None


@pytest.mark.parametrize(
    "damage", ["flip", "truncate", "remove", "no checksums", "half of the checksums", "empty directory"]
)
def test_a_damaged_step_is_set_aside_and_the_step_before_is_used(damage, train_step, run, capsys):
    step = run / "checkpoints" / "3"
    largest = max(_files(step), key=lambda path: path.stat().st_size)
    sums = step / "checksums-00000-of-00001.json"
    if damage == "flip":
        _flip(largest)
    elif damage == "truncate":
        largest.write_bytes(largest.read_bytes()[:-1])
    elif damage == "remove":
        largest.unlink()
    elif damage == "no checksums":
        sums.unlink()
    elif damage == "half of the checksums":
        sums.rename(step / "checksums-00000-of-00002.json")
    else:
        shutil.rmtree(step)
        step.mkdir()
    checkpoints = RunCheckpoints(run, CheckpointConfig())
    output = capsys.readouterr().out
    assert "step 3 cannot be trusted and is set aside" in output
    assert "going back to step 2" in output
    assert checkpoints.steps == [1, 2]
    expected = jax.device_get(train_step.init(jax.random.key(2)).params)
    jax.tree.map(np.testing.assert_array_equal, _weights(train_step, checkpoints, 2), expected)
    assert checkpoints.read_metadata(2)["data"] == {"0": 2}
    assert len(list((run / "damaged").iterdir())) == 1
    state = train_step.init(jax.random.key(5))
    checkpoints.save(state.replace(step=state.step + 3), {})  # the number of the step is free again
    checkpoints.close()
    assert find_damage(step) is None


def test_the_newest_two_and_every_third_step_are_kept(train_step, tmp_path):
    checkpoints = RunCheckpoints(tmp_path, CheckpointConfig(keep=2, keep_every=3))
    state = train_step.init(jax.random.key(0))
    for step in range(1, 8):
        checkpoints.save(state.replace(step=state.step * 0 + step), {})
    checkpoints.close()
    assert RunCheckpoints(tmp_path, CheckpointConfig()).steps == [3, 6, 7]


def test_a_run_without_an_intact_step_is_an_error(run):
    for step in (run / "checkpoints").iterdir():
        _flip(max(_files(step), key=lambda path: path.stat().st_size))
    with pytest.raises(
        checkpoint.CheckpointError, match="no step in .*checkpoints is intact: .*remove it to start afresh"
    ):
        RunCheckpoints(run, CheckpointConfig())


def test_a_run_killed_before_its_first_seal_continues(run, capsys):
    for path in run.rglob("checksums-*"):
        path.unlink()
    assert RunCheckpoints(run, CheckpointConfig()).steps == [1, 2, 3]
    assert "continuing from step 3, which has no checksums" in capsys.readouterr().out


def test_processes_share_the_work_of_checking(run):
    step = run / "checkpoints" / "3"
    (step / "checksums-00000-of-00001.json").unlink()
    for index in range(3):
        assert "no checksums" in str(find_damage(step))
        write_checksums(step, index, 3)
    assert [find_damage(step, index, 2) for index in range(2)] == [None, None]
    path = max(_files(step), key=lambda path: path.stat().st_size)
    _flip(path)
    assert [find_damage(step, index, 2) is None for index in range(2)].count(False) == 1


def test_loading_a_damaged_language_model_is_an_error(train_step, run):
    step = run / "checkpoints" / "2"
    abstract = train_step.abstract_state.params
    checkpoint.load_llm(step, abstract)
    _flip(max(_files(step / "optimizer"), key=lambda path: path.stat().st_size))
    checkpoint.load_llm(step, abstract)  # damage outside llm/ does not matter
    path = max(_files(step / "llm"), key=lambda path: path.stat().st_size)
    _flip(path)
    with pytest.raises(checkpoint.CheckpointError, match=rf"{pathlib.Path(path).name}: is not as it was written"):
        checkpoint.load_llm(step, abstract)
