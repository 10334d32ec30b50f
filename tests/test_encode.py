"""`python -m spirit_jax.encode`: resuming after a kill, several hosts, unusable files, the summary and errors."""

import json
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from spirit_jax import encode as command
from spirit_jax.audio import load_audio, save_audio
from spirit_jax.corpora import open_input
from spirit_jax.corpora.block_store import BlockStore
from spirit_jax.corpora.blocks import SPEECH_BLOCK, TEXT_BLOCK, EncodedBlock
from spirit_jax.corpora.encoding import EncodingError, HostShare, encode_split
from spirit_jax.data.records import RecordSource
from spirit_jax.speech import SpeechTokenizer
from spirit_jax.speech.released.phonetic import HubertEncoder
from spirit_jax.speech.storage import save_part
from tests.support import released
from tests.support.goldens import golden
from tests.support.released import HUBERT

ROOT = pathlib.Path(__file__).parents[1]
CLIPS = 3 * SPEECH_BLOCK + 7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    part = HubertEncoder.load(*released.hubert_part(golden(HUBERT)))
    save_part(directory / "speech_tokenizer" / "phonetic", part)
    return directory


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return SpeechTokenizer.from_pretrained(checkpoint, "base")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Short clips with transcripts; three cannot be used."""
    folder = tmp_path_factory.mktemp("audio")
    speech, rng = load_audio(golden("audio/espeak_a_22k.wav")), np.random.default_rng(0)
    for number in range(CLIPS):
        start, length = rng.integers(0, 30_000), rng.integers(1500, 5000)
        save_audio(folder / f"clip{number:03d}.wav", speech[start : start + length])
        (folder / f"clip{number:03d}.txt").write_text(f"number {number}")
    save_audio(folder / "clip005.wav", speech[:1279])
    (folder / "clip070.wav").write_bytes(b"RIFF, but no more")
    save_audio(folder / "clip071.wav", speech[:0])
    return folder


@pytest.fixture(scope="module")
def expected(tokenizer, files, tmp_path_factory):
    """The records and the summary of an undisturbed job."""
    directory = tmp_path_factory.mktemp("records")
    summary = encode_split(open_input(str(files), "train"), tokenizer, directory, shards=2, progress=False)
    return directory, summary


def contents(directory):
    source = RecordSource(directory, "train")
    return [source.read_bytes(index) for index in range(len(source))]


def test_records_and_summary_describe_the_clips(expected, files, tokenizer):
    directory, summary = expected
    source = RecordSource(directory, "train")
    records = [source[index] for index in range(len(source))]
    ids = [record.id for record in records]
    assert sorted(ids) == [f"clip{n:03d}" for n in range(CLIPS) if n not in (5, 70, 71)]
    assert (summary.records, summary.bad) == (CLIPS - 3, 3)
    for record in records[::40]:
        audio = load_audio(files / f"{record.id}.wav")
        assert record.units == tokenizer.encode(audio)
        assert record.text == f"number {int(record.id[4:])}"
        assert record.duration_ms == round(len(audio) / 16)
    seconds = sum(len(load_audio(files / f"{name}.wav")) for name in ids) / 16_000
    assert summary.hours == pytest.approx(seconds / 3600)
    units = [record.units for record in records if record.units is not None]
    assert len(units) == len(records)
    tokens = sum(len(one.merged()[0]) for one in units)
    assert summary.tokens_per_second == {"Hu": pytest.approx(tokens / seconds)}
    counts = np.bincount(np.concatenate([one.hubert for one in units]), minlength=501)
    assert summary.histograms == {"Hu": counts.tolist()}
    assert f"{np.count_nonzero(counts)} of 501 units in use" in str(summary)
    assert not list(directory.glob(".*"))


def test_unusable_files_are_logged_with_their_reasons(files, tokenizer, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        encode_split(open_input(f"{files}/clip0[07]*.wav", "train"), tokenizer, tmp_path, progress=False)
    for reason in ("'clip005': 1279 samples", "'clip070': .*cannot be decoded", "'clip071': .*holds no samples"):
        assert any(re.search(reason, message) for message in caplog.messages), reason
    with pytest.raises(ValueError, match="clip005"):
        encode_split(open_input(f"{files}/clip00*.wav", "train"), tokenizer, tmp_path / "strict", skip_bad=False)
    with pytest.raises(EncodingError, match="none of 1 utterances of split 'train' can be used"):
        encode_split(open_input(f"{files}/clip005.wav*", "train"), tokenizer, tmp_path / "none", progress=False)


def test_killed_job_resumes_without_gaps_or_duplicates(checkpoint, files, expected, tmp_path):
    """After SIGKILL behind the first block, the same command writes the records of an undisturbed job."""
    arguments = [
        "--checkpoint",
        checkpoint,
        "--variant",
        "base",
        "--input",
        files,
        "--output",
        tmp_path,
        "--shards",
        "2",
    ]
    line = [sys.executable, "-m", "spirit_jax.encode", *map(str, arguments)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    job = subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    blocks = tmp_path / ".encoding-train"
    while not list(blocks.glob("*.msgpack")):
        assert job.poll() is None, "ended before its first block"
        time.sleep(0.002)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert not (tmp_path / "metadata.json").exists()
    first = {path.name: path.stat().st_mtime_ns for path in blocks.glob("*.msgpack")}
    assert 1 <= len(first) < 4
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"train: {CLIPS - 3} records" in done.stdout
    assert f"{CLIPS - len(first) * SPEECH_BLOCK}/{CLIPS - len(first) * SPEECH_BLOCK}" in done.stderr  # only the rest
    assert contents(tmp_path) == contents(expected[0])
    assert not blocks.exists()


def test_hosts_encode_disjoint_blocks(files, tokenizer, expected, tmp_path):
    opened = open_input(str(files), "train")
    for host in (2, 1):
        assert encode_split(opened, tokenizer, tmp_path, shards=2, progress=False, share=HostShare(host, 3)) is None
    assert sorted(path.stem for path in (tmp_path / ".encoding-train").iterdir()) == ["00000001", "00000002"]
    summary = encode_split(opened, tokenizer, tmp_path, shards=2, progress=False, share=HostShare(0, 3))
    assert summary is not None
    assert (summary.records, summary.bad) == (expected[1].records, expected[1].bad)
    assert contents(tmp_path) == contents(expected[0])


def test_host_that_stopped_is_named(files, tokenizer, expected, tmp_path):
    """Host 1 of 3 never runs: host 0 gives up and names it; both resume when they are started again."""
    opened = open_input(str(files), "train")

    def run(host):
        return encode_split(
            opened, tokenizer, tmp_path, shards=2, progress=False, share=HostShare(host, 3, timeout=0.1)
        )

    run(2)
    with pytest.raises(EncodingError, match="host 1 of 3 has finished no block for 0 s and lacks 1. .*--host_index 1"):
        run(0)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".encoding-train").iterdir()}
    assert len(kept) == 3
    run(1)
    assert {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / ".encoding-train").iterdir()
    }.items() >= kept.items()
    summary = run(0)
    assert summary is not None
    assert summary.records == expected[1].records
    assert contents(tmp_path) == contents(expected[0])


def test_finished_blocks_of_another_job_are_not_used(files, tokenizer, tmp_path):
    left, opened = (open_input(f"{files}/clip0{tens}*.wav", "train") for tens in (1, 2))
    job = {"corpus": left.fingerprint, "units": tokenizer.fingerprint, "block": SPEECH_BLOCK}
    store = BlockStore(tmp_path / ".encoding-train", EncodedBlock, job)
    store.write(0, EncodedBlock([b"left behind by a job on other files"], [], 0, 0, [0, 0, 0], [[], [], []], 0.0))
    assert store.read(0) is not None
    encode_split(opened, tokenizer, tmp_path, progress=False)
    source = RecordSource(tmp_path, "train")
    assert [source[index].id for index in range(len(source))] == [f"clip02{n}" for n in range(10)]


def test_finished_split_is_not_encoded_again(files, tokenizer, expected, monkeypatch):
    monkeypatch.setattr(tokenizer, "encode_batch", None)
    directory, summary = expected
    assert encode_split(open_input(str(files), "train"), tokenizer, directory, shards=2, progress=False) == summary


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--input", "spirit_mini"], 2, "output"),
        (["--input", "no/such.jsonl", "--output", "o"], 2, "no/such.jsonl: no such manifest"),
        (["--input", "spirit_mini", "--output", "o", "--checkpoint", "nowhere"], 2, "nowhere: no such checkpoint"),
        (["--input", "spirit_mini", "--output", "o"], 1, "a speech tokenizer is needed"),
        (["--input", "spirit_mini", "--output", "o", "--split", "x"], 2, "no split 'x'"),
        (["--input", "x", "--output", "o", "--host_index", "3"], 2, "host_index must be in 0..host_count-1"),
        (["--input", "x", "--output", "o", "--inputs", "y"], 2, "inputs"),
    ],
)
def test_command_line_errors_are_one_line(arguments, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "o" / "metadata.json").exists()


def test_output_that_cannot_take_the_records_fails_the_job(tmp_path, capsys):
    (tmp_path / "web.jsonl").write_text('{"text": "a page"}')
    with pytest.raises(SystemExit) as exit_:
        command.main(["--input", str(tmp_path / "web.jsonl"), "--output", str(tmp_path / "o"), "--split", "a b"])
    assert exit_.value.code == 1
    assert "split 'a b': use letters" in capsys.readouterr().err


def test_text_needs_no_checkpoint(tmp_path, capsys):
    command.main(["--input", "spirit_mini_text", "--output", str(tmp_path), "--split", "validation"])
    assert "records" in capsys.readouterr().out
    assert RecordSource(tmp_path, "validation")[0].units is None


def test_lines_of_text_become_records(tmp_path, capsys, caplog):
    lines = [f"Document {index} of many." for index in range(TEXT_BLOCK + 3)]
    rows = [json.dumps({"text": line, "meta": {}}) for line in lines]
    rows.insert(5, '{"text": ""}')
    (tmp_path / "web.jsonl").write_text("\n".join(rows))
    command.main(["--input", str(tmp_path / "web.jsonl"), "--output", str(tmp_path / "records"), "--shards", "2"])
    assert "1 bad" in capsys.readouterr().out
    assert "utterance 'web.jsonl:6': its transcript is empty" in caplog.text
    records = RecordSource(tmp_path / "records", "train")
    assert sorted(record.text for record in records) == sorted(lines)
