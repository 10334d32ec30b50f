"""Manifests, folders and globs of audio files as corpora."""

import json

import numpy as np
import pytest

from spirit_jax.audio import save_audio
from spirit_jax.corpora import CorpusError, text
from spirit_jax.corpora.inputs import open_input


def make_files(folder, names, samples=4000):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_audio(folder / name, np.full(samples, 0.1, np.float32))


def test_a_folder_and_a_glob(tmp_path):
    make_files(tmp_path, ["b/two.flac", "a.wav", "b/one.wav"])
    (tmp_path / "b/one.txt").write_text("a transcript\n")
    (tmp_path / "notes.md").write_text("not audio")
    corpus = open_input(str(tmp_path), "dev")
    assert [clip.id for clip in corpus] == ["a", "b/one", "b/two"]
    assert [clip.text for clip in corpus] == ["", "a transcript", ""]
    assert (corpus.split, corpus.has_speech, corpus.name) == ("dev", True, tmp_path.name)
    np.testing.assert_allclose(corpus[1].load(), 0.1, atol=1e-4)  # 16-bit samples
    assert [clip.id for clip in open_input(f"{tmp_path}/b/*.wav", "dev")] == ["one"]
    assert [clip.id for clip in open_input(f"{tmp_path}/**/*.flac", "dev")] == ["b/two"]


def test_manifests(tmp_path):
    make_files(tmp_path / "wav", ["x.wav", "y.wav"])
    words = [{"word": "hello", "start_ms": 0, "end_ms": 90}, {"word": "you", "start_ms": 90, "end_ms": 250}]
    lines = [
        {"audio": "wav/y.wav", "text": "Hello you.", "words": words, "speaker": "s1", "id": "first"},
        {"audio": str(tmp_path / "wav/x.wav")},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    first, second = open_input(str(tmp_path / "m.jsonl"), "train")
    assert (first.id, first.text, first.speaker, first.words) == ("first", "Hello you.", "s1", ("hello", "you"))
    assert first.spans_ms.tolist() == [[0, 90], [90, 250]]
    assert (second.id, len(second.load())) == ("wav/x", 4000)
    (tmp_path / "m.tsv").write_text('audio\ttext\nwav/x.wav\tSay "no".\nwav/y.wav\t\n')
    assert [clip.text for clip in open_input(str(tmp_path / "m.tsv"), "train")] == ['Say "no".', ""]


def test_a_line_of_a_manifest_ends_at_a_newline_alone(tmp_path):
    """Unicode has other line ends, which JSON and tables leave in transcripts as they are."""
    make_files(tmp_path, ["x.wav"])
    text_ = "one\u2028two\x85three"
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": "x.wav", "text": text_}, ensure_ascii=False) + "\n")
    (tmp_path / "m.tsv").write_text(f"audio\ttext\nx.wav\t{text_}\n")
    for name in ("m.jsonl", "m.tsv"):
        assert [clip.text for clip in open_input(str(tmp_path / name), "train")] == [text_]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("m.jsonl", '{"audio": "a.wav"}\n{"audio": ', "m.jsonl:2: not JSON"),
        ("m.jsonl", '{"words": []}', "m.jsonl:1: needs an 'audio' path"),
        ("m.jsonl", '{"audio": "a.wav", "transcript": "x"}', "m.jsonl:1: unknown field 'transcript'"),
        ("m.jsonl", '{"audio": "a.wav", "words": [["x", 0, 1]]}', "m.jsonl:1: words must be a list"),
        ("m.jsonl", '{"audio": "a.wav", "id": "x"}\n{"audio": "b.wav", "id": "x"}', "two clips have the id 'x'"),
        ("m.jsonl", "", "no audio files"),
        ("m.tsv", "audio\ttext\na.wav", "m.tsv:2: 1 columns, the first line names 2"),
        ("other.txt", "", "no prepared corpus"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, file, content, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(CorpusError, match=message):
        open_input(str(tmp_path / file), "train")


def test_missing_things_are_named(tmp_path):
    with pytest.raises(CorpusError, match="no such manifest"):
        open_input(str(tmp_path / "m.jsonl"), "train")
    with pytest.raises(CorpusError, match="no audio files"):
        open_input(str(tmp_path), "train")
    (tmp_path / "m.jsonl").write_text('{"audio": "gone.wav", "text": "t"}')
    (clip,) = open_input(str(tmp_path / "m.jsonl"), "train")
    with pytest.raises(CorpusError, match=r"utterance 'gone': .*gone.wav: No such file"):
        clip.load()


def test_the_fingerprint_follows_files_and_transcripts(tmp_path):
    make_files(tmp_path, ["a.wav"])
    before = open_input(str(tmp_path), "train").fingerprint
    assert open_input(str(tmp_path), "train").fingerprint == before
    (tmp_path / "a.txt").write_text("said")
    said = open_input(str(tmp_path), "train").fingerprint
    make_files(tmp_path, ["a.wav"], samples=5000)
    assert len({before, said, open_input(str(tmp_path), "train").fingerprint}) == 3


def test_lines_of_text(tmp_path):
    """Ids, other fields, a missing newline at the end, an empty file among several; a bad line is named when it is read."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_text('{"text": "Füße\\nund Hände", "url": "x"}\n{"text": "two", "id": 7}\n')
    b.write_text('{"text": "three"}\nnot json\n\n{"words": 1}\n{"text": "four"}')
    (tmp_path / "c.jsonl").write_text("")
    corpus = open_input(str(a), "train")
    assert (corpus.name, corpus.split, corpus.has_speech, len(corpus)) == ("a", "train", False, 2)
    assert [(line.id, line.text) for line in corpus] == [("a.jsonl:1", "Füße\nund Hände"), ("7", "two")]
    both = open_input(str(tmp_path / "[ab].jsonl"), "train")
    assert (both.name, len(both)) == (tmp_path.name, 7)
    assert [both[index].text for index in (0, 1, 2, -1)] == ["Füße\nund Hände", "two", "three", "four"]
    for index, message in ((3, r"b.jsonl:2: not JSON"), (4, r"b.jsonl:3: empty"), (5, r"b.jsonl:4: needs an object")):
        with pytest.raises(CorpusError, match=message):
            both[index]
    assert len(open_input(str(tmp_path / "[abc].jsonl"), "train")) == 7
    (tmp_path / "d.jsonl").write_text('{"audio": "a.wav", "text": "spoken"}\n')
    with pytest.raises(CorpusError, match=r"d.jsonl: needs lines with 'text' and no 'audio'"):
        open_input(str(tmp_path / "*.jsonl"), "train")
    before = both.fingerprint
    b.write_text('{"text": "three"}\n')
    assert open_input(str(tmp_path / "[ab].jsonl"), "train").fingerprint != before


def test_lines_are_found_across_stretches(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_STRETCH", 7)
    expected = [f"{'x' * (index * 5 % 23)}." for index in range(50)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in expected))
    assert [line.text for line in open_input(str(tmp_path / "t.jsonl"), "train")] == expected


def test_a_bundled_corpus_by_name():
    corpus = open_input("spirit_mini", "validation")
    assert corpus.has_speech
    assert corpus[0].words
