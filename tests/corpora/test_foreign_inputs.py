"""Inputs as other tools and careless hands write them: names of fields, damaged lines, links, devices, encodings."""

import gzip
import json
import logging
import os
import random

import numpy as np
import pytest

from spirit_jax.audio import save_audio
from spirit_jax.core.paths import PathError
from spirit_jax.corpora import CorpusError, open_input


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """Clips a.wav and b.wav, and the folder with them as working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        save_audio(f"{name}.wav", np.full(8000, 0.1, np.float32))
    return tmp_path


def usable(source):
    """The utterances that can be read, and the messages of the others."""
    corpus, found, errors = open_input(str(source), "train"), [], []
    for index in range(len(corpus)):
        try:
            found.append(corpus[index])
        except CorpusError as error:
            errors.append(str(error))
    return found, errors


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nemo.jsonl", '{"audio_filepath": "a.wav", "duration": 0.5, "text": "hi"}'),
        ("nemo.json", '{"audio_filepath": "a.wav", "duration": 0.5, "text": "hi"}\n'),
        ("hf.jsonl", '{"audio": {"path": "a.wav", "bytes": null}, "sentence": "hi"}'),
        ("folder.jsonl", '{"file_name": "a.wav", "transcription": "hi"}'),
        ("wav.jsonl", '{"wav": "a.wav", "text": "hi"}'),
        ("list.jsonl", '[{"audio": "a.wav", "text": "hi"}]'),
        ("list.json", '[\n {"audio": "a.wav",\n "text": "hi"}\n]'),
        ("speechbrain.json", '{"a": {"wav": "a.wav",\n "transcript": "hi"}}'),
        ("table.csv", 'audio,text\na.wav,"hi"\n'),
        ("bars.csv", "path|text\na.wav|hi\n"),
        ("table.tsv", "path\tsentence\tclient_id\na.wav\thi\tjane\n"),
        ("zipped.jsonl.gz", gzip.compress(b'{"audio": "a.wav", "text": "hi"}', mtime=0)),
        (
            "cuts.jsonl",
            '{"id": "a", "start": 0, "duration": 0.5, "channel": 0, "supervisions": [{"text": "hi"}], '
            '"recording": {"sources": [{"type": "file", "source": "a.wav"}]}}',
        ),
        ("marked.jsonl", b'\xef\xbb\xbf{"audio": "a.wav", "text": "hi"}'),
        ("marked.tsv", b"\xef\xbb\xbfaudio\ttext\r\na.wav\thi\r\n"),
        ("marked.csv", b"\xef\xbb\xbfaudio,text\r\na.wav,hi\r\n"),
    ],
)
def test_forms_of_other_tools_are_read(clips, name, content):
    (clips / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found, errors = usable(name)
    assert [(clip.id, clip.text, clip.load().size) for clip in found] == [("a", "hi", 8000)]
    assert not errors


def test_a_list_of_files_of_fairseq_is_read(clips):
    (clips / "f.tsv").write_text(f"{clips}\na.wav\t8000\nb.wav\t8000\n")
    assert [clip.load().size for clip in usable("f.tsv")[0]] == [8000, 8000]


def test_segments_of_long_recordings_are_read(clips):
    lines = [{"audio_filepath": "a.wav", "offset": start, "duration": 0.1, "text": "x"} for start in (0, 0.2, 0.35)]
    (clips / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found, errors = usable("m.jsonl")
    assert [(clip.id, clip.load().size) for clip in found] == [("a@0", 1600), ("a@0.2", 1600), ("a@0.35", 1600)]
    assert not errors


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"audio": ["b.wav"]}', r"needs an 'audio' path .*found 'audio': \['b.wav'\]"),
        ('{"audio": 17}', "needs an 'audio' path .*found 'audio': 17"),
        ('{"audio": {"bytes": "x"}}', "needs an 'audio' path"),
        ('{"text": "lost its audio"}', "needs an 'audio' path .*found the fields"),
        ('["b.wav"]', "needs an object with an 'audio' path"),
        ('{"audio": "b.wav", "id": ' + "[" * 200000 + "]" * 200000 + "}", "nested more than 100 deep"),
        ('{"audio": "b.wav", "speaker": {"name": "x"}}', "'speaker' must be a string"),
        ('{"audio": "b.wav", "text": true}', "'text' must be a string, found True"),
        ('{"audio": "b.wav", "offset": "late"}', "'offset' must be seconds"),
        ('{"audio": "b.wav", "offset": -1}', "'offset' must be seconds"),
        ('{"audio": "b.wav", "words": 3}', "words must be a list"),
        ('{"audio": "b.wav", "words": [{"word": "x"}]}', "word 0 .'x'. needs a start_ms in milliseconds, found none"),
        ('{"audio": "b.wav", "words": [{"word": "x", "start_ms": null, "end_ms": 3}]}', "start_ms .*found None"),
        ('{"audio": "b.wav", "words": [{"word": "x", "start_ms": 1, "end_ms": 1e12}]}', "end_ms in milliseconds"),
        ('{"audio": "b.wav", "words": [{"word": "x", "start_ms": NaN, "end_ms": 1}]}', "start_ms in milliseconds"),
        ('{"audio": "b.wav", "words": [{"word": null, "start_ms": 0.1, "end_ms": 0.4}]}', "seem to be seconds"),
        ('{"audio": "b.wav", "words": [{"word": [], "start_ms": 1, "end_ms": 4}]}', "'word' must be a string"),
        ('{"audio": "b.wav", "id": 1' + "0" * 5000 + "}", "not JSON"),
        (b'{"audio": "b.wav", "text": "caf\xe9"}', "not UTF-8 text"),
        ('{"recording": {"sources": [{"type": "command", "source": "x"}]}}', "a lhotse cut with one recording"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_and_the_others_are_read(clips, line, message):
    content = line if isinstance(line, bytes) else line.encode()
    (clips / "m.jsonl").write_bytes(b'{"audio": "a.wav"}\n' + content + b"\n")
    found, errors = usable("m.jsonl")
    assert [clip.id for clip in found] == ["a"]
    assert len(errors) == 1
    with pytest.raises(CorpusError, match=f"m.jsonl:2: .*{message}"):
        raise CorpusError(errors[0])
    assert len(errors[0]) < 400


def test_false_values_are_kept(clips):
    (clips / "m.jsonl").write_text(
        '{"audio": "a.wav", "id": 0, "speaker": 0, "text": 0}\n{"audio": "b.wav", "id": 1.5}'
    )
    found, _ = usable("m.jsonl")
    assert [(clip.id, clip.speaker, clip.text) for clip in found] == [("0", "0", "0"), ("1.5", "", "")]
    (clips / "t.jsonl").write_text('{"text": "one", "id": 0}\n{"text": "two", "id": null}')
    assert [document.id for document in usable("t.jsonl")[0]] == ["0", "t.jsonl:2"]


def test_numbers_and_fractions_of_milliseconds_are_words_and_times(clips):
    words = [{"word": 2266, "start_ms": 80.4, "end_ms": 310.6}, {"word": "x", "start_ms": 310.6, "end_ms": 400}]
    (clips / "m.jsonl").write_text(json.dumps({"audio": "a.wav", "text": "2266 x", "words": words}))
    (clip,) = usable("m.jsonl")[0]
    assert (clip.words, clip.spans_ms.tolist()) == (("2266", "x"), [[80, 311], [311, 400]])


def test_fields_that_are_not_used_are_logged_once(clips, caplog):
    (clips / "m.jsonl").write_text('{"audio": "a.wav", "speeker": "x", "lang": "en"}\n{"audio": "b.wav", "lang": "en"}')
    with caplog.at_level(logging.WARNING):
        open_input("m.jsonl", "train")
    assert caplog.messages == ["m.jsonl: fields that are not used: lang, speeker"]


def test_files_with_one_stem_get_ids_with_their_suffix(clips):
    save_audio("a.flac", np.full(4000, 0.1, np.float32))
    (clips / "a.txt").write_text("hi")
    assert [(clip.id, clip.text) for clip in usable(".")[0]] == [("a.flac", "hi"), ("a.wav", "hi"), ("b", "")]
    (clips / "m.tsv").write_text("audio\tid\na.wav\tx\nb.wav\tx\na.flac\ty\n")
    found, errors = usable("m.tsv")
    assert [clip.id for clip in found] == ["x", "y"]
    assert "two clips have the id 'x'" in errors[0]


def test_one_audio_file_is_a_corpus(clips):
    (clips / "b.txt").write_text("hello")
    assert [(clip.id, clip.text) for clip in usable("b.wav")[0]] == [("b", "hello")]


def test_a_transcript_that_is_not_text_leaves_out_its_clip(clips):
    for content in (b"caf\xe9", b"\xff\xfe"):
        (clips / "b.txt").write_bytes(content)
        found, errors = usable(".")
        assert [clip.id for clip in found] == ["a"]
        assert "b.txt: not UTF-8 text" in errors[0]


def test_devices_pipes_and_buckets_are_refused(clips):
    os.mkfifo("pipe.jsonl")
    os.mkfifo("pipe")
    os.mkfifo("c.txt")
    save_audio("c.wav", np.full(8000, 0.1, np.float32))
    for source in ("pipe.jsonl", "pipe", "/dev/null"):
        with pytest.raises(CorpusError, match=f"{source}: is a device or a pipe"):
            open_input(source, "train")
    for source in ("s3://bucket/m.jsonl", "s3://bucket/*.wav"):
        with pytest.raises(PathError, match="is not read or written"):
            open_input(source, "train")
    assert "c.txt: is a device or a pipe" in usable(".")[1][0]
    (clips / "m.jsonl").write_text(
        '{"audio": "a.wav"}\n{"audio": "/dev/zero"}\n{"audio": "pipe"}\n{"audio": "' + "x" * 300 + '"}'
    )
    corpus = open_input("m.jsonl", "train")
    assert len(corpus.fingerprint) == 64
    assert len(corpus) == 4
    for clip in corpus:
        if clip.id != "a":
            with pytest.raises(CorpusError, match="is a device or a pipe|no such file"):
                clip.load()


def test_lines_of_text_are_checked_one_by_one(clips):
    (clips / "t.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "first"}\n{"text": "caf\xe9"}\n' + b'{"text": ' + b"[" * 5000 + b"\n"
        b'{"text": "x", "id": [1]}\n{"text": "spoken", "wav": "a.wav"}\n{"text": "code", "path": "a.py"}\n'
    )
    (clips / "t.jsonl").write_bytes(b"".join((b'{"text": "w"}\n' * 100, (clips / "t.jsonl").read_bytes()[3:])))
    found, errors = usable("t.jsonl")
    assert [document.text for document in found[100:]] == ["first", "code"]
    for error, message in zip(
        errors, ("not UTF-8 text", "nested more than", "'id' must be a string", "has audio"), strict=True
    ):
        assert message in error
    (clips / "marked.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "first"}\n{"text": "second"}\n')
    assert [document.text for document in usable("marked.jsonl")[0]] == ["first", "second"]


def test_mutated_manifests_and_texts_give_utterances_or_corpus_errors(clips):
    """Thousands of damaged files of each form are read or refused, without another exception."""
    rng = random.Random(0)
    words = '"words": [{"word": "hi", "start_ms": 0, "end_ms": 90}, {"word": "you", "start_ms": 90, "end_ms": 250}]'
    forms = {
        "m.jsonl": f'{{"audio": "a.wav", "text": "hi you", "id": "x", "speaker": "s", {words}}}\n'
        '{"audio": "b.wav"}\n',
        "m.json": '[{"audio_filepath": "a.wav", "offset": 0.1, "duration": 0.2}, {"audio": {"path": "b.wav"}}]',
        "c.jsonl": '{"id": "c", "start": 0, "duration": 1, "supervisions": [{"text": "x", "speaker": "y"}], '
        '"recording": {"sources": [{"type": "file", "source": "a.wav"}]}}\n',
        "m.tsv": "audio\ttext\tspeaker\na.wav\thi\tx\nb.wav\tyou\ty\n",
        "m.csv": 'audio,text,speaker\na.wav,"hi",x\nb.wav,you,y\n',
        "t.jsonl": '{"text": "hi you", "id": 7}\n{"text": "more"}\n',
    }
    pieces = [
        b"null",
        b"1e400",
        b"-1",
        b"[",
        b"}",
        b'"',
        b"{}",
        b"\xff",
        b"\0",
        b"\\ud800",
        b"true",
        b"9" * 5000,
        b",",
        b"\t",
    ]
    refused = 0
    for number in range(1800):
        name, text = list(forms.items())[number % len(forms)]
        content = bytearray(text.encode())
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(content))
            content[place : place + rng.choice([0, 1, 1, 5, 9])] = rng.choice(pieces)
        (clips / name).write_bytes(content)
        try:
            corpus = open_input(name, "train")
            assert corpus.fingerprint
            for index in range(len(corpus)):
                try:
                    utterance = corpus[index]
                    assert all(isinstance(part, str) for part in (utterance.id, utterance.text, utterance.speaker))
                except CorpusError:
                    refused += 1
        except CorpusError as error:
            refused += 1
            assert name in str(error)  # noqa: PT017 - some of them are harmless
    assert refused > 600
