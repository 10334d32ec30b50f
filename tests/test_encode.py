"""`python -m spirit_jax.encode`: resuming after a kill, several hosts, unusable files, the summary and errors."""

import concurrent.futures
import json
import logging
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from spirit_jax import encode as command
from spirit_jax.audio import load_audio, save_audio
from spirit_jax.core.buckets import list_objects, read_object
from spirit_jax.core.files import write_file
from spirit_jax.corpora import open_input
from spirit_jax.corpora.block_store import BlockStore
from spirit_jax.corpora.blocks import SPEECH_BLOCK, TEXT_BLOCK, BlockEncoder, EncodedBlock
from spirit_jax.corpora.encoding import EncodingError, OutputError, encode_split
from spirit_jax.corpora.held_out import hold_out
from spirit_jax.corpora.shared_work import Sharing
from spirit_jax.data.records import RecordSource
from spirit_jax.data.unit_record import RecordError
from spirit_jax.speech import SpeechTokenizer
from spirit_jax.speech.released.phonetic import HubertEncoder
from spirit_jax.speech.storage import save_part
from tests.support import released
from tests.support.compilation import fast_environment
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
    assert f"{np.count_nonzero(counts)} of 500 units in use" in str(summary)  # the quantizer has 500 clusters
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
    environment = fast_environment()  # as this process computed what is expected
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


def test_processes_share_the_blocks_of_a_lost_one(files, tokenizer, expected, tmp_path):
    """One process has left a finished block and the lease of another; the next one takes over what it left."""
    opened = open_input(str(files), "train")
    job = {"corpus": opened.fingerprint, "units": tokenizer.fingerprint, "block": SPEECH_BLOCK}
    store = BlockStore(tmp_path / ".encoding-train", EncodedBlock, job)
    with BlockEncoder(opened, tokenizer) as encoder:
        store.write(2, encoder.encode(2))
    store.folder.write("0.lease", json.dumps({"host": "lost", "pid": 1}).encode())
    started = time.monotonic()
    summary = encode_split(opened, tokenizer, tmp_path, shards=2, progress=False, sharing=Sharing(lease_seconds=2))
    assert time.monotonic() - started > 1
    assert (summary.records, summary.bad) == (expected[1].records, expected[1].bad)
    assert contents(tmp_path) == contents(expected[0])
    assert not list(tmp_path.glob(".*"))


def test_finished_blocks_of_another_job_are_not_used(files, tokenizer, tmp_path):
    left, opened = (open_input(f"{files}/clip0{tens}*.wav", "train") for tens in (1, 2))
    job = {"corpus": left.fingerprint, "units": tokenizer.fingerprint, "block": SPEECH_BLOCK}
    store = BlockStore(tmp_path / ".encoding-train", EncodedBlock, job)
    store.write(0, EncodedBlock([b"left behind by a job on other files"], [], 0, 0, 0, [0, 0, 0], [[], [], []], 0.0))
    assert store.read(0) is not None
    with pytest.raises(OutputError, match="holds 1 finished blocks of an unfinished job on another input"):
        encode_split(opened, tokenizer, tmp_path, progress=False)
    assert store.read(0) is not None
    encode_split(opened, tokenizer, tmp_path, progress=False, overwrite=True)
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
        (["--input", "x", "--output", "o", "--lease_seconds", "0"], 2, "lease_seconds must be positive"),
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


@pytest.mark.parametrize("split", ["a b", "dev-clean", ".dev", "../dev"])
def test_a_split_name_that_records_cannot_have_is_refused_before_the_work(split, tmp_path, capsys):
    (tmp_path / "web.jsonl").write_text('{"text": "a page"}')
    with pytest.raises(SystemExit) as exit_:
        command.main(["--input", str(tmp_path / "web.jsonl"), "--output", str(tmp_path / "o"), "--split", split])
    assert exit_.value.code == 2
    assert f"split {split!r}: use letters" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.fixture
def pages(tmp_path):
    """Two texts of 30 and 40 lines."""
    for name, count in (("one", 30), ("two", 40)):
        lines = (json.dumps({"text": f"page {number} of {name}"}) for number in range(count))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(*arguments):
    """The exit code of the command."""
    try:
        command.main([str(argument) for argument in arguments])
    except SystemExit as error:
        return error.code
    return 0


def texts(directory, split="train"):
    source = RecordSource(directory, split)
    return [source[index].text for index in source.written_order()]


def test_records_of_another_input_are_replaced_only_with_overwrite(pages, capsys):
    one, two, output = pages / "one.jsonl", pages / "two.jsonl", pages / "records"
    assert run("--input", one, "--output", output) == 0
    assert run("--input", two, "--output", output) == 2
    assert "holds records of split 'train' from another input" in capsys.readouterr().err
    assert len(texts(output)) == 30
    assert run("--input", two, "--output", output, "--split", "other") == 0
    assert run("--input", two, "--output", output, "--overwrite") == 0
    assert (len(texts(output)), len(texts(output, "other"))) == (40, 40)
    (output / "encoding-train.json").unlink()
    assert run("--input", one, "--output", output) == 2


def test_a_finished_split_is_resharded_or_says_that_nothing_is_to_do(pages, caplog):
    arguments = ("--input", pages / "one.jsonl", "--output", pages / "records")
    assert run(*arguments, "--shards", 3) == 0
    expected = texts(pages / "records")
    for shards, message in ((3, "nothing to do"), (None, "nothing to do"), (2, "again in 2 files"), (1, "in 1 files")):
        caplog.clear()
        assert run(*arguments, *(("--shards", shards) if shards else ())) == 0
        assert message in caplog.text
        assert texts(pages / "records") == expected
        assert len(list((pages / "records").glob("*.array_record"))) == (shards or 3)


def test_processes_that_run_at_once_share_the_work(pages, monkeypatch):
    monkeypatch.setattr("spirit_jax.corpora.blocks.TEXT_BLOCK", 1)
    opened, encoded, encode = open_input(str(pages / "one.jsonl"), "train"), [], BlockEncoder.encode

    def encode_slowly(encoder, block):
        encoded.append(block)
        time.sleep(0.01)
        return encode(encoder, block)

    monkeypatch.setattr(BlockEncoder, "encode", encode_slowly)
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        jobs = [
            threads.submit(encode_split, opened, None, pages / "out", progress=False, sharing=Sharing(60, index, 3))
            for index in range(3)
        ]
        summaries = [job.result() for job in jobs]
    assert [summary.records for summary in summaries] == [30, 30, 30]
    assert sorted(set(encoded)) == list(range(30))
    assert len(encoded) < 35  # a block is encoded twice only where a lease is claimed just after it was stored
    assert texts(pages / "out") == [f"page {number} of one" for number in range(30)]
    assert not list((pages / "out").glob(".*"))


@pytest.mark.parametrize("remove", ["the output", "a block"])
def test_a_job_whose_output_is_removed_ends_with_a_message_or_does_it_again(pages, remove, monkeypatch, capsys):
    monkeypatch.setattr("spirit_jax.corpora.blocks.TEXT_BLOCK", 10)
    write, output = BlockStore.write, pages / "records"

    def write_and_remove(store, block, finished):
        write(store, block, finished)
        if block == 1 and not (pages / "removed").exists():
            (pages / "removed").touch()
            shutil.rmtree(output) if remove == "the output" else store.folder.remove(store.name(0))

    monkeypatch.setattr(BlockStore, "write", write_and_remove)
    code = run("--input", pages / "one.jsonl", "--output", output)
    if remove == "the output":
        assert code == 1
        assert "was removed" in capsys.readouterr().err
    else:
        assert (code, len(texts(output))) == (0, 30)


def test_records_in_a_bucket_are_those_of_a_disk(pages, bucket, capsys, caplog):
    for output in (pages / "records", f"{bucket}/records"):
        assert run("--input", pages / "one.jsonl", "--output", output, "--shards", 2) == 0
    names = [path.name for path in sorted((pages / "records").glob("*.array_record"))]
    assert set(list_objects(f"{bucket}/records")) == {*names, "metadata.json", "encoding-train.json"}
    for name in (*names, "metadata.json"):
        assert read_object(f"{bucket}/records/{name}") == (pages / "records" / name).read_bytes()
    assert texts(f"{bucket}/records") == texts(pages / "records")
    with caplog.at_level(logging.INFO):
        assert run("--input", pages / "one.jsonl", "--output", f"{bucket}/records") == 0
    assert "is already encoded, nothing to do" in caplog.text
    write_file(f"{bucket}/records/{names[0]}", b"cut")
    with pytest.raises(RecordError, match="3 bytes"):
        RecordSource(f"{bucket}/records", "train")
    assert run("--input", pages / "one.jsonl", "--output", f"{bucket}/records", "--shards", 2) == 0
    assert len(texts(f"{bucket}/records")) == 30
    write_file(f"{bucket}/in/two.jsonl", (pages / "two.jsonl").read_bytes())
    assert run("--input", f"{bucket}/in/two.jsonl", "--output", f"{bucket}/records", "--split", "validation") == 0
    assert len(texts(f"{bucket}/records", "validation")) == 40


@pytest.mark.slow
def test_three_processes_in_a_bucket_of_which_one_is_killed_write_the_bytes_of_one_on_a_disk(tmp_path, bucket):
    (tmp_path / "lines.jsonl").write_text("".join(f'{{"text": "line {n}"}}\n' for n in range(6 * TEXT_BLOCK)))
    assert run("--input", tmp_path / "lines.jsonl", "--output", tmp_path / "records") == 0
    output = f"{bucket}/records"
    words = ["--input", str(tmp_path / "lines.jsonl"), "--output", output]
    line = [sys.executable, "-m", "spirit_jax.encode", *words]
    jobs = [subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    while not any(name.endswith(".msgpack") for name in list_objects(f"{output}/.encoding-train")):
        assert all(job.poll() is None for job in jobs)
    jobs[0].kill()
    for job in jobs:
        error = job.communicate(timeout=300)[1]
        assert job.returncode == (-signal.SIGKILL if job is jobs[0] else 0), error
    names = [path.name for path in (tmp_path / "records").glob("*.array_record")]
    assert set(list_objects(output)) == {*names, "metadata.json", "encoding-train.json"}
    for name in (*names, "metadata.json"):
        assert read_object(f"{output}/{name}") == (tmp_path / "records" / name).read_bytes()


def test_a_job_whose_bucket_fails_is_one_line_and_resumes(pages, bucket, bucket_faults, monkeypatch, capsys):
    monkeypatch.setattr("spirit_jax.corpora.blocks.TEXT_BLOCK", 10)
    # the process that fails is this one, which lives on, so that its leases end by their time
    arguments = ("--input", pages / "one.jsonl", "--output", f"{bucket}/records", "--lease-seconds", 1)
    bucket_faults.plan(503, 1000, "POST", "upload")
    assert run(*arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.endswith("when the network and the bucket's quota allow it")
    bucket_faults.clear()
    write = BlockStore.write

    def write_and_fail(store, block, finished):
        write(store, block, finished)
        if block == 1:
            bucket_faults.plan(403, 1000)

    monkeypatch.setattr(BlockStore, "write", write_and_fail)
    assert run(*arguments) == 2
    assert "these credentials may not be used here" in capsys.readouterr().err
    bucket_faults.clear()
    assert "metadata.json" not in list_objects(f"{bucket}/records")
    monkeypatch.setattr(BlockStore, "write", write)
    assert run(*arguments) == 0
    assert len(texts(f"{bucket}/records")) == 30
    assert run("--input", pages / "one.jsonl", "--output", "gs://no-such-bucket/records") == 2
    assert "gs://no-such-bucket: no such bucket or object" in capsys.readouterr().err


def test_other_addresses_are_refused_and_home_is_expanded(pages, monkeypatch, capsys):
    monkeypatch.chdir(pages)
    monkeypatch.setenv("HOME", str(pages / "home"))
    assert run("--input", "one.jsonl", "--output", "s3://bucket") == 2
    assert "--output s3://bucket: " in capsys.readouterr().err
    assert run("--input", "one.jsonl", "--output", "~/records") == 0
    assert len(texts(pages / "home/records")) == 30
    assert sorted(path.name for path in pages.iterdir()) == ["home", "one.jsonl", "two.jsonl"]


def test_text_with_a_checkpoint_is_refused(pages, checkpoint, capsys):
    (pages / "lost.jsonl").write_text('{"text": "its audio was lost", "length": 3}')
    for name in ("one.jsonl", "lost.jsonl"):
        assert run("--input", pages / name, "--output", pages / "o", "--checkpoint", checkpoint) == 2
        assert "holds text without audio, but --checkpoint was given" in capsys.readouterr().err


def test_documents_that_utf8_cannot_hold_are_named_and_left_out(tmp_path, capsys, caplog):
    rows = ['{"text": "good"}', '{"text": "bad \\ud800"}', '{"text": "fine", "id": "\\udfff"}', '{"text": "last"}']
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    assert run("--input", tmp_path / "t.jsonl", "--output", tmp_path / "o") == 0
    assert texts(tmp_path / "o") == ["good", "last"]
    assert "2 bad ones left out" in capsys.readouterr().out
    assert "record 't.jsonl:2': holds half of a surrogate pair" in caplog.text


def test_a_fraction_is_held_out_for_validation(pages, capsys):
    output = pages / "records"
    assert run("--input", pages / "two.jsonl", "--output", output, "--validation-fraction", 0.2) == 0
    train, validation = texts(output), texts(output, "validation")
    assert sorted(train + validation) == sorted(f"page {number} of two" for number in range(40))
    assert 2 <= len(validation) <= 16
    assert run("--input", pages / "two.jsonl", "--output", pages / "again", "--validation_fraction", 0.2) == 0
    assert texts(pages / "again", "validation") == validation
    for fraction in (1.5, -1):
        assert run("--input", pages / "two.jsonl", "--output", output, f"--validation-fraction={fraction}") == 2


@pytest.mark.parametrize(("speakers", "whole"), [(20, True), (2, False), (0, False)])
def test_whole_speakers_are_held_out_where_there_are_enough(tmp_path, speakers, whole):
    lines = [
        {"audio": f"{number}.wav", "speaker": f"s{number % speakers}" if speakers else ""} for number in range(200)
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{broken\n")
    corpus = open_input(str(tmp_path / "m.jsonl"), "train")
    train, validation = hold_out(corpus, 0.1)
    assert (len(train) + len(validation), validation.split) == (201, "validation")
    assert 3 <= len(validation) <= 60
    voices = [{part[index].speaker for index in range(len(part) - (part is train))} for part in (train, validation)]
    assert (not voices[0] & voices[1]) == whole
    assert len({corpus.fingerprint, train.fingerprint, validation.fingerprint}) == 3


def test_hubert_of_another_rate_is_refused_at_the_start(files, tmp_path, capsys):
    config, arrays = released.hubert_part(golden(HUBERT))
    layers = [list(layer) for layer in config["encoder"]["conv_layers"]]
    layers[-1][2] = 1
    config = {**config, "encoder": {**config["encoder"], "conv_layers": layers}}
    save_part(tmp_path / "speech_tokenizer" / "phonetic", HubertEncoder.load(config, arrays))
    arguments = ("--checkpoint", tmp_path, "--variant", "base", "--input", files, "--output", tmp_path / "o")
    assert run(*arguments) == 2
    assert "HuBERT gives 50 units a second; Spirit LM, its records and vocoders have 25" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


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
