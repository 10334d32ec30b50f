"""The `align` command on bundled clips: manifest, files, resuming, filters and bad input."""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from spirit_jax.align import main
from spirit_jax.audio import save_audio
from spirit_jax.corpora import open_corpus, open_input, write_corpus

CLIPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of recordings with transcripts beside them."""
    directory = tmp_path_factory.mktemp("clips")
    corpus = open_corpus("spirit_mini", "validation")
    for index in range(CLIPS):
        utterance = corpus[index]
        (directory / f"clip{index}.ogg").write_bytes(utterance.audio_bytes())
        (directory / f"clip{index}.txt").write_text(utterance.text + "\n")
    return directory


def run(*arguments):
    main([str(argument) for argument in arguments])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_manifest_holds_every_word_with_its_time_and_encode_reads_it(folder, tmp_path):
    run("--input", folder, "--output", tmp_path)
    manifest, corpus = lines(tmp_path / "train.jsonl"), open_corpus("spirit_mini", "validation")
    assert [line["id"] for line in manifest] == [f"clip{index}" for index in range(CLIPS)]
    opened = open_input(str(tmp_path / "train.jsonl"), "train")
    for index in range(CLIPS):
        utterance, exact = opened[index], corpus[index]
        assert " ".join(utterance.words) == exact.text
        assert utterance.load().size == exact.load().size  # the audio is found, and the times are in order
        # pocketsphinx on this corpus: 13 ms on average
        assert np.abs(utterance.spans_ms - exact.spans_ms).mean() < 40
    summary = json.loads((tmp_path / "train.summary.json").read_text())
    assert summary["utterances"] == CLIPS
    assert summary["words"] == sum(len(line["words"]) for line in manifest) == sum(summary["score_histogram"])


def test_audio_of_a_prepared_corpus_is_written_beside_the_manifest(tmp_path):
    corpus = open_corpus("spirit_mini", "validation")
    write_corpus(tmp_path, "two", {"validation": [corpus[0], corpus[1]]}, "Two clips.")
    run("--input", tmp_path / "two", "--split", "validation", "--output", tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    assert open_input(str(tmp_path / "moved/validation.jsonl"), "train")[1].load().size == corpus[1].load().size


def test_clips_that_cannot_be_aligned_are_listed_with_their_reason(folder, tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("clip0", "clip1"):
        for suffix in (".ogg", ".txt"):
            (clips / (name + suffix)).write_bytes((folder / (name + suffix)).read_bytes())
    save_audio(clips / "silent.wav", np.zeros(16_000, np.float32))
    (clips / "silent.txt").write_text("There is nothing to hear in this recording at all, I am afraid.")
    save_audio(clips / "short.wav", np.zeros(100, np.float32))
    (clips / "short.txt").write_text("Short.")
    save_audio(clips / "wordless.wav", np.zeros(16_000, np.float32))
    (clips / "broken.wav").write_bytes(b"RIFF")
    run("--input", clips, "--output", tmp_path / "out")
    reasons = {line["id"]: line["reason"] for line in lines(tmp_path / "out/train.left_out.jsonl")}
    assert sorted(reasons) == ["broken", "short", "silent", "wordless"]
    assert "shorter" in reasons["short"]
    assert reasons["wordless"] == "no transcript"


def test_transcript_of_another_clip_is_left_out_by_the_filter(folder, tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    for index in range(CLIPS):
        other = (index + 1) % CLIPS if index < 2 else index
        (clips / f"clip{index}.ogg").write_bytes((folder / f"clip{index}.ogg").read_bytes())
        (clips / f"clip{index}.txt").write_bytes((folder / f"clip{other}.txt").read_bytes())
    run("--input", clips, "--output", tmp_path / "out", "--min_score", 0.35)
    assert {line["id"] for line in lines(tmp_path / "out/train.left_out.jsonl")} == {"clip0", "clip1"}


def test_finished_alignment_is_kept_and_another_is_refused(folder, tmp_path, capsys):
    run("--input", folder, "--output", tmp_path)
    before = (tmp_path / "train.jsonl").stat().st_mtime_ns
    run("--input", folder, "--output", tmp_path)
    assert (tmp_path / "train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(SystemExit) as stopped:
        run("--input", folder, "--output", tmp_path, "--min_score", 0.1)
    assert stopped.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    run("--input", folder, "--output", tmp_path, "--min_score", 0.1, "--overwrite", "true")


def test_killed_job_resumes_and_ends_like_an_unbroken_one(tmp_path):
    options = ["--input", "spirit_mini", "--split", "validation"]
    command = [sys.executable, "-m", "spirit_jax.align", *options, "--output", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    blocks = tmp_path / "killed/.align-validation"
    deadline = time.monotonic() + 120
    while not (blocks.is_dir() and any(blocks.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed/validation.jsonl").exists()
    run(*options, "--output", tmp_path / "killed")
    run(*options, "--output", tmp_path / "whole")
    for name in ("validation.jsonl", "validation.left_out.jsonl", "validation.summary.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_files_for_other_tools_hold_the_same_words(folder, tmp_path):
    run("--input", folder, "--output", tmp_path, "--write", "textgrid", "--write", "ctm", "--write", "librispeech")
    (first, *_) = lines(tmp_path / "train.jsonl")
    words = [word["word"] for word in first["words"]]
    grid = (tmp_path / "train/textgrid/clip0.TextGrid").read_text()
    assert [text for text in re.findall(r'text = "(.*)"', grid) if text] == words
    ctm = [line.split() for line in (tmp_path / "train/ctm/words.ctm").read_text().splitlines()]
    assert [row[4] for row in ctm if row[0] == "clip0"] == words
    assert float(ctm[0][2]) == pytest.approx(first["words"][0]["start_ms"] / 1000)
    alignment = (tmp_path / "train/librispeech/words.alignment.txt").read_text().splitlines()[0]
    name, texts, ends = re.fullmatch(r'(\S+) "(.*)" "(.*)"', alignment).groups()
    assert name == "clip0"
    assert len(texts.split(",")) == len(ends.split(","))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--aligner", "nobody"], "choose among pocketsphinx"),
        (["--write", "pdf"], "choose among textgrid"),
        (["--min_score", "2"], "between 0 and 1"),
        (["--transcribe", "nobody"], "unknown recognizer"),
        (["--transcribe", "whisper:/nowhere"], "local directory"),
    ],
)
def test_bad_arguments_are_refused_by_name(folder, tmp_path, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--input", folder, "--output", tmp_path, *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_segment_of_a_longer_file_keeps_its_place(folder, tmp_path):
    corpus = open_corpus("spirit_mini", "validation")
    pieces = [corpus[index].load() for index in range(2)]
    save_audio(tmp_path / "both.wav", np.concatenate(pieces))
    start = pieces[0].size / 16_000
    entry = {"audio": "both.wav", "text": corpus[1].text, "offset": start, "duration": pieces[1].size / 16_000}
    (tmp_path / "segments.jsonl").write_text(json.dumps(entry) + "\n")
    run("--input", tmp_path / "segments.jsonl", "--output", tmp_path / "out")
    aligned = open_input(str(tmp_path / "out/train.jsonl"), "train")[0]
    assert abs(aligned.load().size - pieces[1].size) <= 1
    # pocketsphinx on this corpus: 13 ms on average
    assert np.abs(aligned.spans_ms - corpus[1].spans_ms).mean() < 40
