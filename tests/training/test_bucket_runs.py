"""Runs whose directory, data and tokenizers are in a bucket."""

import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from spirit_jax import checkpoint, train
from spirit_jax.core import buckets
from spirit_jax.core.bucket_cache import DIRECTORY
from spirit_jax.core.checksums import write_checksums
from spirit_jax.data.records import RecordWriter
from spirit_jax.data.unit_record import UnitRecord
from spirit_jax.training.checkpoints import RunCheckpoints
from spirit_jax.training.config import CheckpointConfig
from spirit_jax.vocabulary import Vocabulary
from tests.support import kills
from tests.support.buckets import DROP
from tests.support.compilation import fast_environment

WORDS = "sun moon star rain snow wind leaf tree root stone river sea salt sand fire smoke bird fish wolf bear".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tokenizer and records of text."""
    directory, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 20)) for _ in range(60)]
    Vocabulary.train(texts, 330, "base").save(directory / "tokenizer")
    with RecordWriter(directory / "records", "train") as writer:
        for index, text in enumerate(texts):
            writer.write(UnitRecord(str(index), text))
    return directory


@pytest.fixture
def uploaded(data, bucket):
    """The same in a bucket."""
    for folder, _, names in os.walk(data):
        for name in names:
            path = pathlib.Path(folder, name)
            buckets.write_object(f"{bucket}/data/{path.relative_to(data)}", path)
    return f"{bucket}/data"


def _words(run, data, steps):
    """Arguments of the command, with a checkpoint every two steps."""
    model = {"vocab_size": 896, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    values = {"run_directory": run, "variant": "base", "tokenizer": f"{data}/tokenizer", "sequence_length": 32}
    values |= {"global_batch_size": 2, "loop.steps": steps, "loop.log_every": 1, "optimizer.schedule_steps": 6}
    values |= {"loop.evaluate_every": 0, "loop.sample_every": 0, "checkpoint.every": 2, "checkpoint.keep": 5}
    values |= {f"model.{name}": value for name, value in model.items()}
    values |= {"data.sources.text.path": f"{data}/records"}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def _train(run, data, steps):
    """Run the command in this process."""
    train.main(_words(run, data, steps))


def _params(step):
    return jax.tree.map(np.asarray, ocp.load(str(step), checkpointable_name="llm"))


def _losses(log):
    return [(record["step"], record["train/loss"]) for record in map(json.loads, log.splitlines())]


@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_lost_and_damaged_ends_like_a_local_one(data, uploaded, bucket, tmp_path, capfd):
    _train(tmp_path / "run", data, 6)
    capfd.readouterr()
    run = f"{bucket}/run"
    _train(run, uploaded, 4)
    output = capfd.readouterr().out
    assert f"checkpoints  {run}/checkpoints/" in output
    assert "goodput" in output
    found = buckets.list_objects(run)
    kept = {"config.json", "config.yaml", "metrics.jsonl", "goodput.json", "checkpoints/4/commit_success.txt"}
    assert kept <= found.keys()
    assert any(name.startswith("tokenizer/") for name in found)
    assert not any(name.startswith((".lock", "records/")) for name in found)
    # a process that was killed in the middle of a save leaves a step without a seal, and its lock
    for name in found:
        if name.startswith("checkpoints/4/") and ("checksums" in name or "commit_success" in name):
            buckets.remove_object(f"{run}/{name}")
    lease = json.dumps({"host": socket.gethostname(), "pid": 1 << 22}).encode()
    buckets.write_object(f"{run}/.train.lock/held.lease", lease)
    _train(run, uploaded, 6)
    assert "Resuming" in (output := capfd.readouterr().out)
    assert "at step 2 of 6" in output
    local = checkpoint.local_directory(f"{run}/checkpoints/6", "--checkpoint")
    assert not (local / "optimizer").exists()
    assert checkpoint.find(local, "tokenizer").is_dir()
    expected = _params(tmp_path / "run/checkpoints/6")
    assert jax.tree.all(jax.tree.map(np.array_equal, _params(local), expected))
    assert _losses(buckets.read_object(f"{run}/metrics.jsonl").decode()) == _losses(
        (tmp_path / "run/metrics.jsonl").read_text()
    )
    # one flipped byte in the newest step: the run goes back to the one before, and sets the damaged one aside
    largest = max(
        (name for name in buckets.list_objects(run) if name.startswith("checkpoints/6/llm/")),
        key=lambda name: buckets.list_objects(run)[name].size,
    )
    content = bytearray(buckets.read_object(f"{run}/{largest}"))
    content[len(content) // 2] ^= 1
    buckets.write_object(f"{run}/{largest}", bytes(content))
    _train(run, uploaded, 6)
    output = capfd.readouterr().out
    assert "step 6 cannot be trusted and is set aside" in output
    local = checkpoint.local_directory(f"{run}/checkpoints/6", "--checkpoint")
    assert jax.tree.all(jax.tree.map(np.array_equal, _params(local), expected))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_readmes_run_in_a_bucket_that_is_killed_ten_times_ends_like_a_local_one(bucket, tmp_path):
    local, run = tmp_path / "local", f"{bucket}/run"
    durations = kills.run_once(kills.command(local, 100, 10), tmp_path / "local.log")
    kills.run_with_kills(kills.command(run, 100, 10), durations, 10, random.Random(0), tmp_path)
    assert kills.differences(local, run) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", [429, 503, DROP])
def test_a_run_whose_bucket_fails_now_and_then_ends_like_a_local_one(
    data, uploaded, bucket, bucket_faults, tmp_path, fault
):
    _train(tmp_path / "run", data, 4)
    for method in ("GET", "POST") if fault != DROP else ("GET",):
        bucket_faults.plan(fault, 3, method, "" if fault != DROP else "alt=media")
    _train(f"{bucket}/run", uploaded, 2)
    for method in ("GET", "POST") if fault != DROP else ("GET",):
        bucket_faults.plan(fault, 3, method, "checkpoints" if fault != DROP else "alt=media")
    _train(f"{bucket}/run", uploaded, 4)
    local = checkpoint.local_directory(f"{bucket}/run/checkpoints/4", "--checkpoint")
    assert jax.tree.all(jax.tree.map(np.array_equal, _params(local), _params(tmp_path / "run/checkpoints/4")))


@pytest.mark.slow
def test_a_run_that_may_not_write_any_more_ends_with_a_line_and_resumes(
    data, uploaded, bucket, bucket_faults, monkeypatch, tmp_path, capsys
):
    _train(tmp_path / "run", data, 4)
    save = RunCheckpoints.save

    def save_without_rights(self, state, streams):
        if int(state.step) == 4:
            bucket_faults.plan(403, 1 << 20)
        save(self, state, streams)

    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoints, "save", save_without_rights)
        with pytest.raises(SystemExit) as stop:
            _train(f"{bucket}/run", uploaded, 4)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code in (1, 2)
    assert f"{bucket}/run" in error
    assert "403" in error or "credentials" in error
    bucket_faults.clear()
    buckets.remove_object(f"{bucket}/run/.train.lock/held.lease")  # its process, this one, has not ended
    _train(f"{bucket}/run", uploaded, 4)
    local = checkpoint.local_directory(f"{bucket}/run/checkpoints/4", "--checkpoint")
    assert jax.tree.all(jax.tree.map(np.array_equal, _params(local), _params(tmp_path / "run/checkpoints/4")))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_in_a_bucket_and_one_continues_when_the_other_is_killed(data, uploaded, bucket, tmp_path):
    run, steps = f"{bucket}/run", 20
    _train(tmp_path / "run", data, steps)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = fast_environment() | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "spirit_jax.train", *_words(run, uploaded, steps)],
            env={**environment, "JAX_PROCESS_ID": str(index), DIRECTORY: str(tmp_path / f"host{index}")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    seals = {f"checkpoints/4/checksums-0000{index}-of-00002.json" for index in range(2)}
    while not seals <= buckets.list_objects(run).keys():
        assert all(process.poll() is None for process in processes), [each.communicate()[0] for each in processes]
        time.sleep(0.1)
    processes[1].kill()
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert processes[0].returncode not in (0, None), outputs
    _train(run, uploaded, steps)
    found = _losses(buckets.read_object(f"{run}/metrics.jsonl").decode())
    expected = _losses((tmp_path / "run/metrics.jsonl").read_text())
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3)


def test_buckets_that_do_not_exist_are_one_line(data, bucket, capsys):
    for run, place in (("gs://no-such/run", data), (f"{bucket}/run", "gs://no-such/data")):
        with pytest.raises(SystemExit) as stop:
            _train(run, place, 2)
        error = capsys.readouterr().err
        assert (stop.value.code, error.count("\n")) == (2, 1)
        assert "gs://no-such" in error
    assert "checkpoints" not in " ".join(buckets.list_objects(bucket))


@pytest.mark.parametrize(("status", "code", "message"), [(403, 2, "these credentials may not"), (429, 1, "quota")])
def test_a_bucket_that_may_not_be_used_is_one_line_and_holds_no_part_of_a_run(
    data, bucket, bucket_faults, status, code, message, capsys
):
    bucket_faults.plan(status, 1 << 20)
    with pytest.raises(SystemExit) as stop:
        _train(f"{bucket}/run", data, 2)
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (code, 1)
    assert message in error
    bucket_faults.clear()
    assert not buckets.list_objects(f"{bucket}/run")


def test_a_first_step_that_was_not_finished_is_no_step(bucket, capfd):
    for name in ("llm/manifest.ocdbt", "_CHECKPOINT_METADATA"):
        buckets.write_object(f"{bucket}/run/checkpoints/2/{name}", b"half")
    assert checkpoint.latest_step(f"{bucket}/run") is None
    checkpoints = RunCheckpoints(f"{bucket}/run", CheckpointConfig())
    assert checkpoints.steps == []
    checkpoints.close()
    assert "step 2 cannot be trusted and is set aside" in capfd.readouterr().out
    assert not [name for name in buckets.list_objects(f"{bucket}/run") if name.startswith("checkpoints/2/")]


def test_a_first_step_without_a_seal_is_set_aside(bucket, capfd):
    for name in ("llm/manifest.ocdbt", "_CHECKPOINT_METADATA", "commit_success.txt"):
        buckets.write_object(f"{bucket}/run/checkpoints/2/{name}", b"whole")
    RunCheckpoints(f"{bucket}/run", CheckpointConfig()).close()
    assert "step 2 cannot be trusted and is set aside" in capfd.readouterr().out
    assert not [name for name in buckets.list_objects(f"{bucket}/run") if name.startswith("checkpoints/2/")]


def test_a_step_that_was_copied_from_a_disk_is_complete_by_its_checksums(bucket):
    buckets.write_object(f"{bucket}/run/checkpoints/2/llm/manifest.ocdbt", b"whole")
    assert checkpoint.latest_step(f"{bucket}/run") is None
    write_checksums(f"{bucket}/run/checkpoints/2")
    assert checkpoint.latest_step(f"{bucket}/run").name == "2"
