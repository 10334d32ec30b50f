"""The `align` command on bundled clips: manifest, files, resuming, filters and bad input."""

import concurrent.futures
import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from spirit_jax.align import main
from spirit_jax.audio import encode_wav, save_audio
from spirit_jax.core.buckets import list_objects, read_object, write_object
from spirit_jax.corpora import Utterance, open_corpus, open_input, write_corpus
from spirit_jax.corpora.alignment.aligner import WordTime
from spirit_jax.corpora.alignment.job import AlignmentSettings, align_corpus
from spirit_jax.corpora.shared_work import Sharing
from tests.support.ctc_networks import save_network

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


@pytest.mark.slow
def test_killed_job_resumes_and_ends_like_an_unbroken_one(tmp_path):
    options = ["--input", "spirit_mini", "--split", "validation"]
    command = [sys.executable, "-m", "spirit_jax.align", *options, "--output", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    blocks = tmp_path / "killed/.align-validation"
    deadline = time.monotonic() + 120
    while not any(blocks.glob("*.msgpack")) and time.monotonic() < deadline:
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
        (["--aligner", "nobody"], "choose among pocketsphinx, train and the directory of a network"),
        (["--write", "pdf"], "choose among textgrid"),
        (["--min_score", "2"], "between 0 and 1"),
        (["--split", "../x"], "split '../x': use letters"),
        (["--lease_seconds", "0"], "lease_seconds must be positive"),
        (["--max_seconds", "0"], "at least 1"),
        (["--alignments", "/nowhere"], "no such file or folder with word times"),
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


@pytest.fixture(scope="module")
def chapter(tmp_path_factory):
    """A folder with one recording of three sentences, their transcript, and where each word is."""
    directory = tmp_path_factory.mktemp("chapter")
    corpus = open_corpus("spirit_mini", "validation")
    pieces, spans, offset = [], [], 0
    for index in range(3):
        audio = corpus[index].load()
        spans.append(corpus[index].spans_ms + offset * 1000 // 16_000)
        pieces += [audio, np.zeros(8000, np.float32)]
        offset += audio.size + 8000
    save_audio(directory / "chapter.wav", np.concatenate(pieces))
    text = " ".join(f"{corpus[index].text.rstrip('.')}." for index in range(3))
    (directory / "chapter.txt").write_text(text)
    return directory, text, np.concatenate(spans)


def test_long_recording_is_cut_at_sentence_ends_and_the_text_follows(chapter, tmp_path):
    folder, text, spans = chapter
    run("--input", folder, "--output", tmp_path, "--max-seconds", 6)
    manifest = lines(tmp_path / "train.jsonl")
    assert [line["id"] for line in manifest] == ["chapter-0001", "chapter-0002"]
    assert " ".join(line["text"] for line in manifest) == text
    assert all(line["text"].endswith(".") and line["duration"] <= 6 for line in manifest)
    assert all(0 < line["score"] <= 1 for line in manifest)
    found = []
    for piece in open_input(str(tmp_path / "train.jsonl"), "train"):
        piece.load()  # the words are inside the audio of the piece
        found.append(piece.spans_ms + round(piece.offset_s * 1000))
    assert np.abs(np.concatenate(found) - spans).mean() < 40


class Heard:
    """A recognizer that hears one word a clip, and an aligner that finds it in the first half of the clip."""

    name = "heard"

    def __init__(self):
        self.lengths = []

    def transcribe(self, clips):
        self.lengths += [clip.size for clip in clips]
        return ["yes" for _ in clips]

    def align(self, clips, transcripts):
        return [[WordTime(0, clip.size // 32, 0.5)] for clip in clips]


def test_recording_without_a_transcript_is_cut_where_nobody_speaks(chapter, tmp_path):
    source, _, spans = chapter
    folder = tmp_path / "untranscribed"
    folder.mkdir()
    (folder / "chapter.wav").write_bytes((source / "chapter.wav").read_bytes())
    save_audio(folder / "silent.wav", np.zeros(16_000 * 7, np.float32))
    heard = Heard()
    settings = AlignmentSettings(max_seconds=6)
    corpus = open_input(str(folder), "train")
    summary = align_corpus(corpus, heard, tmp_path / "out", settings, recognizer=heard, progress=False)
    manifest = lines(tmp_path / "out/train.jsonl")
    assert (summary.utterances, summary.transcribed, summary.left_out) == (len(manifest), len(manifest), 1)
    assert "nobody speaks" in lines(tmp_path / "out/train.left_out.jsonl")[0]["reason"]
    bounds = [(line["offset"] * 1000, (line["offset"] + line["duration"]) * 1000) for line in manifest]
    middles = spans.mean(axis=1)
    assert all(any(start < middle < end for start, end in bounds) for middle in middles)
    assert max(heard.lengths) <= 6 * 16_000
    loaded = [each.load().size for each in open_input(str(tmp_path / "out/train.jsonl"), "train")]
    assert sorted(loaded) == pytest.approx(sorted(heard.lengths), abs=1)


def one_word(path, *names):
    """A folder of clips in which one word is said."""
    for name in names:
        save_audio(path / f"{name}.wav", np.zeros(16_000, np.float32))
        (path / f"{name}.txt").write_text("yes")
    return open_input(str(path), "train")


def test_files_for_other_tools_are_written_for_a_finished_alignment_too(tmp_path):
    corpus = one_word(tmp_path / "clips", "a")
    for write in ((), ("ctm",)):
        align_corpus(corpus, Heard(), tmp_path / "out", write=write, progress=False)
    assert (tmp_path / "out/train/ctm/words.ctm").read_text().startswith("a 1 0.000 0.500 yes")


def test_two_processes_share_the_work_and_the_block_of_a_lost_one(tmp_path, monkeypatch):
    monkeypatch.setattr("spirit_jax.corpora.alignment.job.BLOCK", 1)
    corpus = one_word(tmp_path / "clips", *"abcdef")
    (tmp_path / "out/.align-train").mkdir(parents=True)
    (tmp_path / "out/.align-train/1.lease").write_text('{"host": "lost", "pid": 1}')
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        jobs = [
            threads.submit(
                align_corpus, corpus, Heard(), tmp_path / "out", progress=False, sharing=Sharing(1, index, 2)
            )
            for index in range(2)
        ]
        assert [job.result().utterances for job in jobs] == [6, 6]
    align_corpus(corpus, Heard(), tmp_path / "alone", progress=False)
    for name in ("train.jsonl", "train.summary.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert not list((tmp_path / "out").glob(".*"))


def put(folder, address):
    """Copy a folder into a bucket."""
    for path in folder.rglob("*"):
        if path.is_file():
            write_object(f"{address}/{path.relative_to(folder)}", path.read_bytes())


def test_a_job_in_a_bucket_that_is_killed_ends_with_the_bytes_of_one_on_a_disk(tmp_path, bucket, monkeypatch):
    monkeypatch.setattr("spirit_jax.corpora.alignment.job.BLOCK", 1)
    sounds = [np.full(16_000 + 1000 * number, 0.1, np.float32) for number in range(3)]
    write_corpus(tmp_path, "said", {"train": [Utterance(f"{len(s)}", encode_wav(s), "yes") for s in sounds]}, "Said.")
    put(tmp_path / "said", f"{bucket}/said")
    local, remote = open_input(str(tmp_path / "said"), "train"), open_input(f"{bucket}/said", "train")
    options: dict = {"write": ("textgrid", "ctm"), "progress": False}
    align_corpus(local, Heard(), tmp_path / "out", **options)

    class Killed(Heard):
        def align(self, clips, transcripts):
            if list_objects(f"{bucket}/out/.align-train").keys() & {"00000000.msgpack"}:
                raise KeyboardInterrupt
            return super().align(clips, transcripts)

    with pytest.raises(KeyboardInterrupt):
        align_corpus(remote, Killed(), f"{bucket}/out", **options)
    assert not [name for name in list_objects(f"{bucket}/out") if name.startswith("train.")]
    heard, aligned = Heard(), []
    monkeypatch.setattr(heard, "align", lambda *arguments: aligned.append(0) or Heard.align(heard, *arguments))
    align_corpus(remote, heard, f"{bucket}/out", **options)
    assert len(aligned) == 2
    expected = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*")}
    expected = {name: path.read_bytes() for name, path in expected.items() if path.is_file()}
    assert {name: read_object(f"{bucket}/out/{name}") for name in list_objects(f"{bucket}/out")} == expected
    found = open_input(f"{bucket}/out/train.jsonl", "train")
    assert [clip.load().size for clip in found] == [sound.size for sound in sounds]


def test_recordings_in_a_bucket_keep_their_addresses_in_the_manifest(folder, tmp_path, bucket, monkeypatch, capsys):
    for suffix in (".ogg", ".txt"):
        write_object(f"{bucket}/clips/clip0{suffix}", (folder / f"clip0{suffix}").read_bytes())
    run("--input", f"{bucket}/clips", "--output", f"{bucket}/out")
    assert f"--input {bucket}/out/train.jsonl" in capsys.readouterr().out
    assert "train.scores.png" in list_objects(f"{bucket}/out")
    monkeypatch.setenv("SPIRIT_BUCKET_CACHE", str(tmp_path / "another_machine"))
    run("--input", f"{bucket}/clips", "--output", f"{bucket}/out")  # the same job: nothing is refused
    run("--input", f"{bucket}/out/train.jsonl", "--output", tmp_path / "again")
    ((line,), (again,)) = (
        map(json.loads, text.splitlines())
        for text in (read_object(f"{bucket}/out/train.jsonl").decode(), (tmp_path / "again/train.jsonl").read_text())
    )
    assert line["audio"] == f"{bucket}/clips/clip0.ogg"
    assert again == line


def test_ids_never_lead_out_of_the_output(tmp_path):
    save_audio(tmp_path / "a.wav", np.zeros(16_000, np.float32))
    rows = [{"id": name, "audio": "a.wav", "text": "yes"} for name in ("../../../x", str(tmp_path / "y"), "b/c")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = open_input(str(tmp_path / "m.jsonl"), "train")
    align_corpus(corpus, Heard(), tmp_path / "out", write=("textgrid",), progress=False)
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.TextGrid")]
    expected = ("x", f"{tmp_path}/y".removeprefix("/"), "b/c")
    assert sorted(written) == sorted(f"out/train/textgrid/{name}.TextGrid" for name in expected)


def test_clips_of_similar_ids_keep_their_own_audio(tmp_path):
    clips = []
    for name, samples in (("a/b", 16_000), ("a_b", 8000)):
        save_audio(tmp_path / "clip.wav", np.zeros(samples, np.float32))
        clips.append(Utterance(name, (tmp_path / "clip.wav").read_bytes(), "yes"))
    write_corpus(tmp_path, "two", {"train": clips}, "Two clips.")
    align_corpus(open_input(str(tmp_path / "two"), "train"), Heard(), tmp_path / "out", progress=False)
    sizes = {each.id: each.load().size for each in open_input(str(tmp_path / "out/train.jsonl"), "train")}
    assert sizes == {"a/b": 16_000, "a_b": 8000}


def test_output_may_be_in_the_home_directory_and_not_at_another_address(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run("--input", folder / "clip0.ogg", "--output", "~/out")
    assert (tmp_path / "out/train.jsonl").exists()
    for option, value in (("--output", "s3://b/out"), ("--aligner", "s3://b/network")):
        with pytest.raises(SystemExit) as stopped:
            run("--input", folder, "--output", tmp_path / "other", option, value)
        assert stopped.value.code == 2
        assert "mount the bucket" in capsys.readouterr().err


def test_piece_that_cannot_be_cut_is_left_out(tmp_path):
    save_audio(tmp_path / "clips/a.wav", np.zeros(16_000 * 14, np.float32))
    (tmp_path / "clips/a.txt").write_text("yes")
    save_audio(tmp_path / "clips/b.wav", np.zeros(16_000 * 5, np.float32))
    (tmp_path / "clips/b.txt").write_text("yes")
    corpus = open_input(str(tmp_path / "clips"), "train")
    align_corpus(corpus, Heard(), tmp_path / "out", AlignmentSettings(max_seconds=6), progress=False)
    assert [line["id"] for line in lines(tmp_path / "out/train.jsonl")] == ["b"]
    (left_out,) = lines(tmp_path / "out/train.left_out.jsonl")
    assert left_out["id"] == "a-0001"
    assert "cannot be cut to 6 s" in left_out["reason"]


def test_word_times_of_other_tools_are_kept_and_cut(chapter, tmp_path):
    folder, text, spans = chapter
    rows = "".join(
        f"{start / 1000}\t{end / 1000}\t{word}\n"
        for word, (start, end) in zip(text.split(), spans.tolist(), strict=True)
    )
    (tmp_path / "words").mkdir()
    (tmp_path / "words/chapter.lab").write_text(rows)
    run("--input", folder, "--output", tmp_path / "out", "--alignments", tmp_path / "words", "--max-seconds", 6)
    manifest = lines(tmp_path / "out/train.jsonl")
    found = [
        [word["start_ms"] + round(line["offset"] * 1000), word["end_ms"] + round(line["offset"] * 1000)]
        for line in manifest
        for word in line["words"]
    ]
    np.testing.assert_allclose(found, spans, atol=1)
    assert not any("score" in word for line in manifest for word in line["words"])


def test_a_released_network_is_an_aligner(folder, tmp_path):
    save_network(tmp_path / "network")
    run("--input", folder / "clip0.ogg", "--output", tmp_path / "out", "--aligner", tmp_path / "network")
    ((first,), utterance) = lines(tmp_path / "out/train.jsonl"), open_corpus("spirit_mini", "validation")[0]
    assert " ".join(word["word"] for word in first["words"]) == utterance.text
    edges = [word[edge] for word in first["words"] for edge in ("start_ms", "end_ms")]
    assert edges == sorted(edges)
    assert 0 <= edges[0] < edges[-1] <= utterance.load().size / 16
    assert json.loads((tmp_path / "out/train.summary.json").read_text())["job"]["aligner"].startswith("network ")


def test_directories_without_a_network_and_too_little_speech_are_refused(folder, tmp_path, capsys):
    for aligner, message in ((folder, "no weights there"), ("train", "an aligner learns from 2 minutes or more")):
        with pytest.raises(SystemExit) as stopped:
            run("--input", folder, "--output", tmp_path, "--aligner", aligner)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
