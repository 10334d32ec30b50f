"""Encoding on Apache Beam, with its direct runner: the records are those of the command without a runner."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from spirit_jax import encode as command
from spirit_jax.core.files import write_file
from spirit_jax.corpora import open_corpus
from spirit_jax.speech import SpeechTokenizerConfig, train_speech_tokenizer

pytest.importorskip("apache_beam")

OPTIONS = "direct_num_workers=2 direct_running_mode=multi_processing"
PROCESSES = ["--runner", "DirectRunner", "--runner-options", OPTIONS]
LINES = 13_000  # four blocks


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    documents = ({"id": f"d{number}", "text": f"document number {number}"} for number in range(LINES))
    write_file(path, "".join(json.dumps(document) + "\n" for document in documents))
    return path


@pytest.fixture(scope="module")
def expected(lines, tmp_path_factory):
    """Records of the command without a runner."""
    output = tmp_path_factory.mktemp("expected")
    command.main(["--input", str(lines), "--output", str(output)])
    return _contents(output)


def _contents(directory):
    records = [*directory.glob("*.array_record"), directory / "metadata.json"]
    return {path.name: path.read_bytes() for path in records}


def test_the_runner_in_this_process_gives_the_same_records(lines, expected, tmp_path, capsys):
    command.main(["--input", str(lines), "--output", str(tmp_path), "--runner", "DirectRunner"])
    assert f"train: {LINES} records" in capsys.readouterr().out
    assert _contents(tmp_path) == expected


def test_several_processes_of_which_one_is_killed_give_the_same_records(lines, expected, tmp_path):
    """The direct runner waits for a killed worker for ever. The command resumes after Ctrl-C."""
    line = [sys.executable, "-m", "spirit_jax.encode", "--input", str(lines), "--output", str(tmp_path), *PROCESSES]
    job = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    blocks = tmp_path / ".encoding-train"
    while not list(blocks.glob("*.msgpack")):
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.01)
    os.kill(_workers(job.pid)[0], signal.SIGKILL)
    os.killpg(job.pid, signal.SIGINT)
    job.communicate(timeout=60)
    assert list(blocks.glob("*.msgpack"))
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert _contents(tmp_path) == expected


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_bundled_corpus_alone_in_three_processes_of_which_one_is_killed_and_on_beam_gives_the_same_bytes(tmp_path):
    corpus = open_corpus("spirit_mini", "train")
    small = SpeechTokenizerConfig(phonetic_units=16, pitch_units=8, style_units=2)
    train_speech_tokenizer([corpus[index] for index in range(20)], small, tmp_path, 0, progress=False)
    words = [sys.executable, "-m", "spirit_jax.encode", "--checkpoint", str(tmp_path), "--input", "spirit_mini"]

    def line(name, *more):
        return [*words, "--output", str(tmp_path / name), *more]

    for more in (("alone",), ("beam", *PROCESSES)):
        done = subprocess.run(line(*more), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    jobs = [subprocess.Popen(line("three"), stderr=subprocess.PIPE, text=True) for _ in range(3)]
    numbers, victim = {job.pid for job in jobs}, None
    while victim is None:
        assert all(job.poll() is None for job in jobs)
        if list((tmp_path / "three/.encoding-train").glob("*.msgpack")):
            victim = next(iter(numbers & _holders(tmp_path / "three/.encoding-train")), None)
        time.sleep(0.01)
    os.kill(victim, signal.SIGKILL)
    for job in jobs:
        error = job.communicate(timeout=300)[1]
        assert job.returncode == (-signal.SIGKILL if job.pid == victim else 0), error
    expected = _contents(tmp_path / "alone")
    assert len(expected) > 1
    assert _contents(tmp_path / "three") == expected
    assert _contents(tmp_path / "beam") == expected


def _holders(blocks):
    """Numbers of the processes that hold leases of blocks."""
    found = set()
    for path in blocks.glob("*.lease"):
        with contextlib.suppress(FileNotFoundError, ValueError):  # it was released, or is being written
            found.add(json.loads(path.read_text())["pid"])
    return found


def _workers(driver):
    """Python processes of the workers among the descendants of a process."""
    parents, names = {}, {}
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            number, rest = status.read_text().split(" (", 1)
            name, fields = rest.rsplit(") ", 1)
        except (OSError, ValueError):
            continue
        parents[int(number)], names[int(number)] = int(fields.split()[1]), name
    found = []
    for number, name in names.items():
        above = number
        while above in parents and above != driver:
            above = parents[above]
        if above == driver and number != driver and name.startswith("python"):
            found.append(number)
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runner", "NoRunner"], "--runner NoRunner: Unexpected pipeline runner"),
        (["--runner", "DirectRunner", "--runner-options", "direct_num_workers=x"], "invalid int value: 'x'"),
        (["--runner", "DirectRunner", "--runner-options", "direct_workers=2"], "no option direct_workers"),
        (["--runner", "DirectRunner", "--runner-options", "'direct"], "No closing quotation"),
        (["--runner-options", "direct_num_workers=2"], "name the runner too"),
    ],
)
def test_runners_and_options_that_cannot_be_used_are_refused(lines, arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(["--input", str(lines), "--output", str(tmp_path / "o"), *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
