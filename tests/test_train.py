"""The train command from a corpus to a finished run; an interrupted or killed run ends like an uninterrupted one."""

import json
import pathlib
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from spirit_jax import train
from spirit_jax.checkpoint import latest_step
from spirit_jax.core.checksums import find_damage, read_checksums
from spirit_jax.corpora import open_corpus, write_corpus
from spirit_jax.speech import speech_fingerprints
from tests.support.compilation import fast_environment
from tests.support.runs import newest_arrays, newest_step

TINY = pathlib.Path(__file__).parents[1] / "configs" / "tiny.yaml"
STEPS = 30
RECORDS = {"text": "spirit_mini_text", "speech": "spirit_mini", "aligned": "spirit_mini"}
TIMEOUT = 1000  # seconds; pytest ends a test before


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """The first utterances of the bundled corpora."""
    directory = tmp_path_factory.mktemp("corpora")
    for name, count in (("spirit_mini", 24), ("spirit_mini_text", 60)):
        splits = {}
        for split, share in (("train", 1), ("validation", 3)):
            corpus = open_corpus(name, split)
            splits[split] = [corpus[index] for index in range(count // share)]
        write_corpus(directory, name, splits, "The start of a bundled corpus.")
    return directory


def _arguments(run, corpora, *more):
    """The options of a small run; without `corpora`, the run prepares nothing."""
    prepare = [
        "--prepare.corpora", str(corpora / "spirit_mini"), "--prepare.corpora", str(corpora / "spirit_mini_text"),
        "--prepare.text_pieces", "320", "--prepare.speech_tokenizer.phonetic_units", "32",
        "--prepare.speech_tokenizer.pitch_units", "8", "--prepare.speech_tokenizer.style_units", "4",
    ] if corpora is not None else []  # fmt: skip
    return [
        "--config", str(TINY), "--run_directory", str(run), *prepare,
        "--model.vocab_size", "1024", "--model.hidden_size", "64", "--model.intermediate_size", "128",
        "--model.num_attention_heads", "2", "--model.num_key_value_heads", "2", "--model.num_hidden_layers", "2",
        "--sequence_length", "128", "--global_batch_size", "4", "--loop.steps", str(STEPS), "--loop.log_every", "1",
        "--loop.evaluate_every", "15", "--loop.sample_every", "0", "--sample.max_new_tokens", "30",
        "--checkpoint.every", "6",
        *more,
    ]  # fmt: skip


def _command(run, corpora, *more):
    return [sys.executable, "-m", "spirit_jax.train", *_arguments(run, corpora, *more)]


def _train(run, corpora, *more, cwd=None, environment=None):
    """Train in a process of its own."""
    result = subprocess.run(
        _command(run, corpora, *more),
        env=environment or fast_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        cwd=cwd,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def _error(capsys, code, *arguments):
    """The message of a command that runs in this process and ends with this exit code."""
    with pytest.raises(SystemExit) as end:
        train.main(_arguments(*arguments))
    assert end.value.code == code
    return capsys.readouterr().err


def _curve(run):
    """Every logged value except the measured times."""
    measured = {"train/tokens_per_second", "train/mfu", "train/data_wait"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in measured} for line in lines]


def _weights(run):
    """Every array of the newest checkpoint: parameters and optimizer state."""
    leaves = jax.tree_util.tree_leaves_with_path(newest_arrays(run))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


@pytest.fixture(scope="module")
def uninterrupted(corpora, tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    return run, _train("run", corpora, "--loop.sample_every", "30", cwd=run.parent)


def _prepared(run, uninterrupted):
    """A run directory with the outputs of `prepare`, which are the same every time (a test below shows it)."""
    run.mkdir()
    for name in ("tokenizer", "speech_tokenizer", "records"):
        shutil.copytree(uninterrupted[0] / name, run / name)


def test_a_run_writes_its_files_and_learns(uninterrupted):
    run, result = uninterrupted
    assert f"Done: {STEPS} steps" in result.stdout
    for name in (
        "config.json",
        "config.yaml",
        "metrics.jsonl",
        "tensorboard",
        "tokenizer",
        "speech_tokenizer",
        f"samples/{STEPS}/0.txt",
    ):
        assert (run / name).exists(), name
    steps = sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    assert steps == [18, 24, 30]  # the newest three
    curve = _curve(run)
    assert [line["step"] for line in curve if "train/loss" in line] == list(range(1, STEPS + 1))
    first, last = (next(line["train/loss"] for line in lines if "train/loss" in line) for lines in (curve, curve[::-1]))
    assert last < first - 0.5
    evaluated = [line for line in curve if "validation/loss" in line]
    assert [line["step"] for line in evaluated] == [0, 15, 30]
    # Before the first step, all ids are about equally likely.
    np.testing.assert_allclose(evaluated[0]["validation/loss"], np.log(1024), atol=0.2)


def test_the_suggested_next_command_works(uninterrupted):
    run, result = uninterrupted
    hint = result.stdout.strip().splitlines()[-1]
    assert "spirit_jax.generate --checkpoint run/checkpoints/30" in hint
    command = [sys.executable, *shlex.split(hint)[1:]]
    generated = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, cwd=run.parent)
    assert generated.returncode == 0, generated.stderr[-3000:]
    (answer,) = [json.loads(line) for line in (run / "generated" / "results.jsonl").read_text().splitlines()]
    assert answer


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(uninterrupted, corpora, tmp_path):
    again = tmp_path / "run"
    compiles = {name: value for name, value in fast_environment().items() if name != "JAX_COMPILATION_CACHE_DIR"}
    # It compiles again; the other runs use the cache. Samples are not in the log and change nothing.
    _train(again, corpora, environment=compiles)
    assert _curve(again) == _curve(uninterrupted[0])
    first, second = _weights(uninterrupted[0]), _weights(again)
    assert first.keys() == second.keys()
    assert len(first) > 20
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.mark.parametrize(
    "ending",
    [pytest.param(signal.SIGKILL, id="kill -9"), pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.slow)],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(ending, uninterrupted, corpora, tmp_path):
    run = tmp_path / "run"
    _prepared(run, uninterrupted)
    at = random.SystemRandom().randrange(1, STEPS - 4)
    process = subprocess.Popen(
        _command(run, corpora), env=fast_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    log, deadline = run / "metrics.jsonl", time.monotonic() + TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.read_text().count("train/loss") >= at:
            break
        time.sleep(0.002)
    process.send_signal(ending)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == (-signal.SIGKILL if ending == signal.SIGKILL else 0), output
    if ending == signal.SIGTERM:
        assert "SIGTERM: saving step" in output
        assert "the same command continues from there" in output
    resumed = _train(run, corpora)
    if ending == signal.SIGTERM:
        assert "Resuming" in resumed.stdout
    assert _curve(run) == _curve(uninterrupted[0]), f"killed after step {at}"
    found = _weights(run)
    for name, value in _weights(uninterrupted[0]).items():
        np.testing.assert_array_equal(found[name], value, err_msg=f"{name}, killed after step {at}")


def _job(run, corpora, *more, devices=1):
    """Two processes of `devices` devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **fast_environment(devices),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    return [
        subprocess.Popen(
            _command(run, corpora, *more),
            env={**environment, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]


def _wait(processes, condition):
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline and all(process.poll() is None for process in processes) and not condition():
        time.sleep(0.02)


def _assert_same_curve(found, expected):
    """Compare runs on the same batches: float32 sums in another order, through up to 30 updates."""
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=2e-3, atol=1e-3)


def test_two_processes_train_like_one_and_a_single_process_continues(uninterrupted, corpora, tmp_path):
    """Parameters and rows are split over two hosts. `kill -9` of one host ends the other. One bit of the newest
    checkpoint flips, and a single process continues from the checkpoint before."""
    run = tmp_path / "run"
    _prepared(run, uninterrupted)
    processes = _job(run, corpora)

    def sealed():
        step = latest_step(run)
        return step is not None and int(step.name) >= 12 and find_damage(step) is None

    _wait(processes, sealed)
    killed = random.SystemRandom().randrange(2)
    processes[killed].kill()
    outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    assert sealed(), outputs
    assert processes[1 - killed].returncode not in (0, None), outputs
    assert re.search(
        "one of them has ended: see its log|most likely indicates that another task died", outputs[1 - killed]
    )
    assert "2 cpu device(s) (data 1 x fsdp 2 x tensor 1)" in outputs[0]
    assert outputs[1].count("held-out") == 0  # only the first process prints
    newest = newest_step(run)
    part = max((newest / "optimizer").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    resumed = _train(run, corpora)
    assert f"step {newest.name} cannot be trusted and is set aside" in resumed.stdout
    assert f"going back to step {int(newest.name) - 6}" in resumed.stdout
    assert f"at step {int(newest.name) - 6} of 30" in resumed.stdout
    _assert_same_curve(_curve(run), _curve(uninterrupted[0]))


@pytest.mark.slow
def test_two_processes_continue_on_another_mesh_and_stop_together(uninterrupted, corpora, tmp_path):
    """From one device to four devices of two hosts, with tensor parallelism. SIGTERM to one host saves and ends both
    hosts at one step."""
    run = tmp_path / "run"
    _prepared(run, uninterrupted)
    shutil.copyfile(uninterrupted[0] / "metrics.jsonl", run / "metrics.jsonl")
    shutil.copytree(uninterrupted[0] / "checkpoints" / "18", run / "checkpoints" / "18")
    mesh = ("--mesh.data", "2", "--mesh.fsdp", "1", "--mesh.tensor", "2", "--checkpoint.every", "1000")
    longer = ("--loop.steps", "1000", "--optimizer.schedule_steps", str(STEPS))  # so that it does not end by itself
    processes = _job(run, corpora, *mesh, *longer, devices=2)

    def begun():
        """Whether a step was done since the log, a copy of the other run's, was cut back to step 18."""
        log = (run / "metrics.jsonl").read_text()
        return '"step": 19,' in log and ('"step": 30,' not in log or '"step": 31,' in log)

    _wait(processes, begun)
    processes[random.SystemRandom().randrange(2)].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "4 cpu device(s) (data 2 x fsdp 1 x tensor 2)" in outputs[0]
    assert "at step 18 of 1000" in outputs[0]
    saving = re.search(r"SIGTERM to one of the processes: saving step (\d+) and stopping", outputs[0])
    assert saving is not None
    step = int(saving[1])
    assert step >= 19
    assert int(newest_step(run).name) == step
    assert read_checksums(newest_step(run)) is not None
    expected = [line for line in _curve(uninterrupted[0]) if line["step"] <= step]
    _assert_same_curve([line for line in _curve(run) if line["step"] <= STEPS], expected)


def test_resuming_with_another_config_is_an_error(uninterrupted, corpora, capsys):
    changed = ("--loop.sample_every", "30", "--optimizer.learning_rate", "1")
    message = _error(capsys, 2, uninterrupted[0], corpora, *changed)
    assert re.search(r"holds a run with another config .*optimizer.learning_rate \S+ -> 1.0", message)


def _elsewhere(uninterrupted):
    """Options of a run that prepares nothing and reads records and tokenizers from another run's directory."""
    sources = {name: str(uninterrupted[0] / "records" / records) for name, records in RECORDS.items()}
    return [
        "--prepare", "null",
        "--tokenizer", str(uninterrupted[0] / "tokenizer"),
        "--speech_tokenizer", str(uninterrupted[0]),
        *(word for name, path in sources.items() for word in (f"--data.sources.{name}.path", path)),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_starts_from_a_step_of_another_run(uninterrupted, tmp_path):
    """The first held-out loss equals that of the step. The speech tokenizer is copied and speaks the samples."""
    run = tmp_path / "run"
    before = [line for line in _curve(uninterrupted[0]) if "validation/loss" in line][-1]
    options = ["--init_from", str(newest_step(uninterrupted[0])), "--loop.steps", "2", "--loop.profile_start", "1"]
    train.main(_arguments(run, None, *_elsewhere(uninterrupted), *options, "--loop.sample_every", "2"))
    assert list((run / "profile").rglob("*.xplane.pb"))
    after = next(line for line in _curve(run) if "validation/loss" in line)
    assert after["step"] == 0
    np.testing.assert_allclose(after["validation/loss"], before["validation/loss"], rtol=1e-6)
    assert list((run / "samples" / "2").glob("*.wav"))
    assert speech_fingerprints(run) == speech_fingerprints(uninterrupted[0])


def test_streams_that_do_not_divide_the_batch_are_one_line_and_exit_code_2(uninterrupted, tmp_path, capsys):
    message = _error(capsys, 2, tmp_path / "run", None, *_elsewhere(uninterrupted), "--data.streams", "3")
    assert "error: data: 3 streams do not divide the global batch of 4 rows" in message
    assert message.count("\n") == 1


def test_units_of_another_speech_tokenizer_are_an_error(uninterrupted, tmp_path, capsys):
    records = tmp_path / "records"
    shutil.copytree(uninterrupted[0] / "records" / "spirit_mini", records)
    metadata = json.loads((records / "metadata.json").read_text())
    (records / "metadata.json").write_text(json.dumps({**metadata, "units": "another's"}))
    other = ["--data.sources.aligned.path", str(records)]
    message = _error(capsys, 2, tmp_path / "run", None, *_elsewhere(uninterrupted), *other)
    assert re.search(r"speech \(\S+\) and aligned \(\S+\) hold units of different speech tokenizers", message)
    other += ["--data.sources.speech.path", str(records)]
    message = _error(capsys, 2, tmp_path / "run", None, *_elsewhere(uninterrupted), *other)
    assert re.search(r"speech \(\S+\) was not encoded with the speech tokenizer in \S+run", message)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_a_run_that_diverges_stops_and_keeps_its_last_checkpoint(uninterrupted, corpora, tmp_path, capsys):
    run = tmp_path / "run"
    _prepared(run, uninterrupted)
    message = _error(capsys, 1, run, corpora, "--optimizer.learning_rate", "1e38", "--checkpoint.every", "1")
    bad = r"step \d+ is bad: loss .*, gradient norm .*, and so were the 9 before it; the last checkpoint is intact"
    assert re.search(bad, message), message[-2000:]
    assert all(np.isfinite(value).all() for value in _weights(run).values())
