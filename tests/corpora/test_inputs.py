"""Every kind of input: manifests, folders and globs of audio files, lines of text, corpora by name."""

import json

import numpy as np
import pytest

from spirit_jax.audio import save_audio
from spirit_jax.core.buckets import write_object
from spirit_jax.corpora import CorpusError, open_input
from spirit_jax.corpora.readers import text_lines


def make_files(folder, names, samples=4000):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_audio(folder / name, np.full(samples, 0.1, np.float32))


def test_folders_and_globs_give_a_clip_a_file(tmp_path):
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


def test_manifests_give_a_clip_a_line(tmp_path):
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


def test_manifest_line_ends_only_at_a_newline(tmp_path):
    """Other line ends of Unicode are part of a transcript."""
    make_files(tmp_path, ["x.wav"])
    text_ = "one\u2028two\x85three"
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": "x.wav", "text": text_}, ensure_ascii=False) + "\n")
    (tmp_path / "m.tsv").write_text(f"audio\ttext\nx.wav\t{text_}\n")
    for name in ("m.jsonl", "m.tsv"):
        assert [clip.text for clip in open_input(str(tmp_path / name), "train")] == [text_]


def test_manifests_in_a_bucket_name_recordings_in_it(tmp_path, bucket, bucket_faults):
    make_files(tmp_path, ["wav/x.wav", "here.wav"])
    write_object(f"{bucket}/wav/x.wav", (tmp_path / "wav/x.wav").read_bytes())
    lines = [
        {"audio": "../wav/x.wav"},
        {"audio": f"{bucket}/wav/x.wav", "id": "part", "offset": 0.1, "duration": 0.1},
        {"audio": str(tmp_path / "here.wav"), "id": "here"},
        {"audio": "lost.wav"},
    ]
    write_object(f"{bucket}/lists/m.jsonl", "\n".join(map(json.dumps, lines)).encode())
    corpus = open_input(f"{bucket}/lists/m.jsonl", "train")
    clips = {clip.id: clip for clip in corpus}
    assert clips.keys() == {"../wav/x", "part", "here", "lost"}
    assert [clips[name].load().size for name in ("../wav/x", "part", "here")] == [4000, 1600, 4000]
    assert clips["../wav/x"].audio_bytes() == (tmp_path / "wav/x.wav").read_bytes()
    with pytest.raises(CorpusError, match=f"'lost': {bucket}/lists/lost.wav: no such bucket or object"):
        clips["lost"].load()
    before = corpus.fingerprint
    write_object(f"{bucket}/wav/x.wav", (tmp_path / "here.wav").read_bytes())
    assert corpus.fingerprint != before
    bucket_faults.plan(403, 1000)
    with pytest.raises(OSError, match="these credentials may not be used here"):  # no clip is to blame
        clips["../wav/x"].load()


def test_globs_and_folders_in_a_bucket_are_read_alike_on_every_machine(tmp_path, bucket, monkeypatch):
    make_files(tmp_path, ["a.wav", "b/c.wav", "b/d.flac"])
    (tmp_path / "b/c.txt").write_text("a transcript")
    for path in tmp_path.rglob("*.*"):
        write_object(f"{bucket}/clips/{path.relative_to(tmp_path)}", path.read_bytes())
    found = open_input(f"{bucket}/clips/**/*.wav", "train")
    assert [(clip.id, clip.text) for clip in found] == [("a", ""), ("b/c", "a transcript")]
    folder = open_input(f"{bucket}/clips", "train")
    monkeypatch.setenv("SPIRIT_BUCKET_CACHE", str(tmp_path / "another_machine"))
    assert open_input(f"{bucket}/clips", "train").fingerprint == folder.fingerprint
    with pytest.raises(CorpusError, match="looked for"):
        open_input(f"{bucket}/clips/*.mp3", "train")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("m.jsonl", '{"audio": "a.wav"}\n{"audio": ', "m.jsonl:2: not JSON"),
        ("m.jsonl", '{"words": []}', "m.jsonl:1: needs an 'audio' path"),
        ("m.jsonl", '{"audio": "a.wav", "id": ["x"]}', "m.jsonl:1: 'id' must be a string, found ..x"),
        ("m.jsonl", '{"audio": "a.wav"}\n{"text": "no audio"}', "m.jsonl:2: needs an 'audio' path"),
        ("m.jsonl", '{"text": "no audio"}\n{"audio": "a.wav"}', "m.jsonl:1: needs an 'audio' path"),
        ("m.csv", "text,length\nhi,3\n", "m.csv:1: needs an 'audio' path: no column is named audio, .*found text, len"),
        ("m.jsonl.gz", "not compressed", "m.jsonl.gz: cannot be decompressed"),
        ("m.jsonl", '{"audio": "a.wav", "words": [["x", 0, 1]]}', "m.jsonl:1: words must be a list"),
        ("m.jsonl", '{"audio": "a.wav", "id": "x"}\n{"audio": "b.wav", "id": "x"}', "two clips have the id 'x'"),
        ("m.jsonl", "", "no audio files"),
        ("m.tsv", "audio\ttext\na.wav", "m.tsv:2: 1 columns, the first line names 2"),
        ("other.txt", "", "no prepared corpus"),
    ],
)
def test_errors_name_file_and_line(tmp_path, file, content, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(CorpusError, match=message):
        list(open_input(str(tmp_path / file), "train"))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CorpusError, match="no such manifest"):
        open_input(str(tmp_path / "m.jsonl"), "train")
    with pytest.raises(CorpusError, match="no audio files"):
        open_input(str(tmp_path), "train")
    (tmp_path / "m.jsonl").write_text('{"audio": "gone.wav", "text": "t"}')
    (clip,) = open_input(str(tmp_path / "m.jsonl"), "train")
    with pytest.raises(CorpusError, match=r"utterance 'gone': .*gone.wav: no such file"):
        clip.load()


def test_fingerprint_changes_with_files_and_transcripts(tmp_path):
    make_files(tmp_path, ["a.wav"])
    before = open_input(str(tmp_path), "train").fingerprint
    assert open_input(str(tmp_path), "train").fingerprint == before
    (tmp_path / "a.txt").write_text("spoken")
    transcribed = open_input(str(tmp_path), "train").fingerprint
    make_files(tmp_path, ["a.wav"], samples=5000)
    assert len({before, transcribed, open_input(str(tmp_path), "train").fingerprint}) == 3


def test_text_lines_are_read_in_order_and_bad_ones_named(tmp_path):
    """Covers ids, other fields, a missing newline at the end and an empty file; a bad line is named when it is read."""
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


def test_lines_are_found_across_scans(tmp_path, monkeypatch):
    monkeypatch.setattr(text_lines, "SCAN_BYTES", 7)
    expected = [f"{'x' * (index * 5 % 23)}." for index in range(50)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in expected))
    assert [line.text for line in open_input(str(tmp_path / "t.jsonl"), "train")] == expected


def test_bundled_corpus_opens_by_name():
    corpus = open_input("spirit_mini", "validation")
    assert corpus.has_speech
    assert corpus[0].words


def test_unknown_input_lists_the_kinds(tmp_path):
    (tmp_path / "one.xyz").write_bytes(b"")
    for source in (tmp_path / "one.xyz", tmp_path / "missing"):
        with pytest.raises(
            CorpusError, match=r"manifest \(.jsonl, .json, .csv, .tsv, also .gz\); .*bundled corpora are .*spirit_mini"
        ) as caught:
            open_input(str(source), "train")
        assert str(caught.value).startswith(f"{source}: ")


def test_windows_line_ends_are_line_ends(tmp_path):
    make_files(tmp_path, ["x.wav", "y.wav"])
    (tmp_path / "m.tsv").write_bytes(b"audio\ttext\r\nx.wav\tone\r\ny.wav\ttwo\r\n")
    assert [clip.text for clip in open_input(str(tmp_path / "m.tsv"), "train")] == ["one", "two"]
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert open_input(str(tmp_path), "train")[0].text == "one\ntwo"


def test_text_that_is_not_utf8_is_named(tmp_path):
    make_files(tmp_path, ["x.wav"])
    for name in ("m.tsv", "m.jsonl", "x.txt"):
        (tmp_path / name).write_bytes(b"\xff\xfe")
    for source in ("m.tsv", "m.jsonl", "."):
        with pytest.raises(CorpusError, match="not UTF-8 text"):
            open_input(str(tmp_path / source), "train")
