"""Changes between two parts of a run: those that are allowed, refused, or warned about."""

import contextlib
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from spirit_jax import train
from spirit_jax.checkpoint import write_config
from spirit_jax.core.locks import LockError
from spirit_jax.data.records import RecordWriter
from spirit_jax.data.unit_record import UnitRecord
from spirit_jax.training.run_lock import hold_run
from spirit_jax.vocabulary import Vocabulary
from tests.support.runs import newest_step
from tests.support.synthetic import speech_record

WORDS = "sun moon star rain snow wind leaf tree root stone river sea salt sand fire smoke bird fish wolf bear".split()
LOCK_HOLDER = """
import sys, time
from spirit_jax.core.locks import hold
with hold(sys.argv[1], "training"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tokenizer, records of text with a held-out split, and records of speech without pitch and style."""
    directory, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 20)) for _ in range(100)]
    Vocabulary.train(texts, 330, "base").save(directory / "tokenizer")
    Vocabulary.train(texts, 330, "expressive").save(directory / "expressive")
    for split, part in (("train", texts[:90]), ("validation", texts[90:])):
        with RecordWriter(directory / "records", split) as writer:
            for index, text in enumerate(part):
                writer.write(UnitRecord(str(index), text))
    with RecordWriter(directory / "base", "train") as writer:
        for index in range(5):
            writer.write(speech_record(rng, index, 5, expressive=False))
    return directory


def _arguments(data, run, **more):
    """The command line of a run of two steps with a cosine schedule."""
    model = {"vocab_size": 896, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    values = {"run_directory": run, "variant": "base", "tokenizer": data / "tokenizer", "sequence_length": 32}
    values |= {"global_batch_size": 2, "loop.steps": 2, "loop.log_every": 1, "optimizer.schedule": "cosine"}
    values |= {"loop.evaluate_every": 0, "loop.sample_every": 0, "checkpoint.every": 100}
    values |= {f"model.{name}": value for name, value in model.items()}
    values |= {"data.sources.2024.path": data / "records", "data.sources.2024.held_out_split": "validation"}
    values |= more
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def _refusal(arguments, capsys):
    """The exit code and message of a command that is refused."""
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return stop.value.code, error


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of two steps without held-out data, although evaluation is asked for."""
    run, output = tmp_path_factory.mktemp("finished") / "run", io.StringIO()
    with contextlib.redirect_stdout(output):
        train.main(_arguments(data, run, **{"loop.evaluate_every": 2, "data.sources.2024.held_out_split": "null"}))
    assert "warning: nothing is evaluated, because no source has a held_out_split" in output.getvalue()
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run at another place."""
    return shutil.copytree(finished, tmp_path / "moved")


@pytest.mark.slow
def test_a_moved_run_with_moved_records_resumes_and_a_stretched_schedule_is_warned_of(
    data, run, tmp_path, capsys, monkeypatch
):
    shutil.copytree(data, tmp_path / "elsewhere")
    stored = json.loads((run / "config.json").read_text())
    del stored["optimizer"]["schedule_steps"], stored["data"]["sources"]["2024"]["fraction"]  # as of an earlier version
    write_config(run, stored)
    (tmp_path / "link").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    places = {"data.sources.2024.path": "./elsewhere/records/", "tokenizer": "elsewhere/tokenizer", "data.prefetch": 3}
    train.main(_arguments(data, "./link/", **places, **{"loop.steps": 3, "optimizer.schedule_steps": 2}))
    output = capsys.readouterr().out
    assert "at step 2 of 3" in output
    assert "warning" not in output
    more = {"loop.steps": 4, "loop.evaluate_every": 4, "loop.sample_every": 4, "sample.max_new_tokens": 2}
    train.main(_arguments(data, run, **places, **more, init_from=tmp_path))
    output = capsys.readouterr().out
    assert "the next learning rate is 6.95e-06 in place of 3e-06" in output.replace("\n", " ")
    assert "spans 4 updates now and spanned 2" in output
    assert "warning: init_from is not read" in output
    assert "step 4: held-out loss" in output
    assert "loss by source: 2024 " in output
    assert newest_step(run).name == "4"
    prompt = (run / "samples" / "4" / "0.txt").read_text().split("\n")[0]
    assert prompt.startswith("[Text]")
    assert prompt.split()[1] in WORDS  # from the run's own records
    rates = [json.loads(line).get("train/learning_rate") for line in (run / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([rate for rate in rates if rate is not None][2], 3e-6, rtol=1e-5)


def test_other_records_and_other_options_are_refused(data, run, tmp_path, capsys):
    shutil.copytree(data / "records", tmp_path / "records")
    with RecordWriter(tmp_path / "records", "train") as writer:
        writer.write(UnitRecord("0", "another text"))
    code, error = _refusal(_arguments(data, run, **{"data.sources.2024.path": tmp_path / "records"}), capsys)
    assert code == 2
    assert f"source '2024': {tmp_path}/records does not hold the records that the saved data state was made" in error
    code, error = _refusal(_arguments(data, run, **{"optimizer.learning_rate": 1}), capsys)
    assert (code, "optimizer.learning_rate 3e-05 -> 1.0" in error) == (2, True)
    Vocabulary.train(WORDS * 40, 300, "base").save(tmp_path / "tokenizer")
    code, error = _refusal(_arguments(data, run, tokenizer=tmp_path / "tokenizer"), capsys)
    assert code == 2
    assert f"its steps were trained with other inputs (tokenizer 833 tokens -> {tmp_path}/tokenizer)" in error


def test_a_run_that_another_process_holds_is_refused_and_after_a_kill_it_is_not(data, run, capsys):
    holder = subprocess.Popen([sys.executable, "-c", LOCK_HOLDER, str(run / ".train.lock")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    code, error = _refusal(_arguments(data, run), capsys)
    assert code == 1
    assert f"{run}: process {holder.pid} of " in error
    assert "is at work here (training, since" in error
    holder.kill()
    holder.wait()
    train.main(_arguments(data, run))
    assert "at step 2 of 2" in capsys.readouterr().out
    assert not (run / ".train.lock").exists()


def test_records_without_prosody_are_refused_by_an_expressive_run(data, tmp_path, capsys):
    speech = {"data.sources.mine.path": data / "base", "data.sources.mine.recipe": "interleaved"}
    speech |= {"model.vocab_size": 1024, "variant": "expressive", "tokenizer": data / "expressive"}
    code, error = _refusal(_arguments(data, tmp_path / "run", **speech), capsys)
    assert code == 2
    assert f"data.sources.mine ({data}/base, split train): its records have no pitch and style units" in error


def test_a_step_to_start_from_that_is_not_there_is_one_line(data, tmp_path, finished, capsys):
    missing = finished / "checkpoints" / "7"
    code, error = _refusal(_arguments(data, tmp_path / "run", init_from=missing), capsys)
    assert code == 2
    assert f"{missing}: no such checkpoint directory" in error


def test_a_run_directory_that_disappears_is_noticed(tmp_path):
    with hold_run(tmp_path / "run") as check:
        check()
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(LockError, match="run: was removed or replaced while this job worked in it"):
            check()
