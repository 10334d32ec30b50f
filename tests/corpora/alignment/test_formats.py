"""Word times of other tools: each format in its documented form, and where `encode` finds the files."""

import json

import numpy as np
import pytest

from spirit_jax.audio import save_audio
from spirit_jax.corpora import CorpusError, open_input
from spirit_jax.corpora.alignment.aligner import WordTime
from spirit_jax.corpora.alignment.attach import attach_alignments
from spirit_jax.corpora.alignment.formats import read_alignment
from spirit_jax.corpora.alignment.writers import write_ctm, write_librispeech, write_textgrids

WORDS, SPANS_MS = ("go", "do", "you", "hear"), [[490, 890], [960, 1270], [1270, 1350], [1350, 1700]]

LONG_TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 2
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 2
            text = "sil"
    item [2]:
        class = "IntervalTier"
        name = "jane - words"
        xmin = 0
        xmax = 2
        intervals: size = 6
"""
GRID_ROWS = [(0, 0.49, ""), (0.49, 0.89, "go"), (0.89, 0.96, "sp"), (0.96, 1.27, "do"), (1.27, 1.35, "you"),
             (1.35, 1.7, "hear")]  # fmt: skip
LONG_TEXTGRID += "".join(
    f'        intervals [{i}]:\n            xmin = {start}\n            xmax = {end}\n            text = "{text}"\n'
    for i, (start, end, text) in enumerate(GRID_ROWS, 1)
)
SHORT_TEXTGRID = (
    'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n2\n<exists>\n1\n"IntervalTier"\n"words"\n0\n2\n6\n'
)
SHORT_TEXTGRID += "".join(f'{start}\n{end}\n"{text}"\n' for start, end, text in GRID_ROWS)

SECONDS = [(word, start / 1000, end / 1000) for word, (start, end) in zip(WORDS, SPANS_MS, strict=True)]
WHISPER_WORDS = [{"word": f" {w}", "start": s, "end": e, "probability": 0.9} for w, s, e in SECONDS]
WHISPERX_WORDS = [{"word": w, "start": s, "end": e, "score": 0.9} for w, s, e in SECONDS]

FILES = {
    "a.TextGrid": LONG_TEXTGRID,
    "b.TextGrid": SHORT_TEXTGRID,
    "a.lab": "0.0\t0.49\t\n0.49\t0.89\tgo\n0.89\t0.96\n0.96\t1.27\tdo\n1.27\t1.35\tyou\n1.35\t1.7\thear\n",
    "htk.lab": "0 4900000 sil\n4900000 8900000 go\n9600000 12700000 do\n12700000 13500000 you\n"
    "13500000 17000000 hear\n",
    "whisper.json": json.dumps({"text": " go", "segments": [{"id": 0, "words": WHISPER_WORDS}], "language": "en"}),
    "whisperx.json": json.dumps(
        {
            "segments": [{"start": 0.4, "end": 1.7, "words": WHISPERX_WORDS[:2]}, {"words": WHISPERX_WORDS[2:]}],
            "word_segments": WHISPERX_WORDS,
        }
    ),
    "api.json": json.dumps({"task": "transcribe", "words": WHISPERX_WORDS}),
    "moshi.json": json.dumps(
        {
            "alignments": [
                *([w, [s, e], "SPEAKER_MAIN"] for w, s, e in SECONDS[:2]),
                ["yes", [1.0, 1.2], "SPEAKER_OTHER"],
                *([w, [s, e], "SPEAKER_MAIN"] for w, s, e in SECONDS[2:]),
            ]
        }
    ),
    "list.json": json.dumps(SECONDS),
    "objects.json": json.dumps([{"word": w, "start_ms": s * 1000, "end_ms": e * 1000} for w, s, e in SECONDS]),
}


@pytest.mark.parametrize("name", FILES)
def test_words_of_one_recording(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    found = read_alignment(tmp_path / name)
    assert found[""].words == WORDS
    assert found[""].spans_ms.tolist() == SPANS_MS


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("84-121123.alignment.txt", '84-121123-0000 ",go,,do,you,hear," "0.490,0.890,0.960,1.270,1.350,1.700,2.0"\n'),
        ("words.ctm", ";; a comment\n" + "".join(f"84-121123-0000 1 {s} {e - s:.3f} {w} 0.9\n" for w, s, e in SECONDS)),
    ],
)
def test_words_of_several_recordings_by_id(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = read_alignment(tmp_path / name)
    assert found["84-121123-0000"].words == WORDS
    assert found["84-121123-0000"].spans_ms.tolist() == SPANS_MS


def test_textgrid_is_read_as_praatio_reads_it(tmp_path):
    textgrid = pytest.importorskip("praatio.textgrid")
    path = tmp_path / "a.TextGrid"
    path.write_text(LONG_TEXTGRID.replace('"do"', '"say ""do"""').replace('"you"', '"ü"'), encoding="utf-16")
    tier = textgrid.openTextgrid(str(path), includeEmptyIntervals=False).getTier("jane - words")
    expected = [entry for entry in tier.entries if entry.label != "sp"]
    found = read_alignment(path)[""]
    assert found.words == tuple(entry.label for entry in expected)
    assert found.spans_ms.tolist() == [[round(entry.start * 1000), round(entry.end * 1000)] for entry in expected]


def test_word_without_a_time_lies_between_its_neighbors(tmp_path):
    words = [WHISPERX_WORDS[0], {"word": "2"}, *WHISPERX_WORDS[1:]]
    (tmp_path / "a.json").write_text(json.dumps({"segments": [{"words": words}]}))
    assert read_alignment(tmp_path / "a.json")[""].spans_ms[1].tolist() == [890, 960]


def test_what_align_writes_is_read_again(tmp_path):
    times = [WordTime(start, end, 1.0) for start, end in SPANS_MS]
    for write in (write_textgrids, write_ctm, write_librispeech):
        write(tmp_path, [("a", 2.0, WORDS, times)])
    for name, key in (("a.TextGrid", ""), ("words.ctm", "a"), ("words.alignment.txt", "a")):
        found = read_alignment(tmp_path / name)[key]
        assert (found.words, found.spans_ms.tolist()) == (WORDS, SPANS_MS)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.TextGrid", LONG_TEXTGRID[:-60], "ends before"),
        ("a.TextGrid", "no grid", "ends before"),
        ("a.TextGrid", 'File type = "x"\n"y" 1', "not a TextGrid"),
        ("a.TextGrid", SHORT_TEXTGRID.replace("\n6\n", "\n1e999\n"), "not a TextGrid"),
        ("a.ctm", "id 1 0.3\n", "a.ctm:1: needs ID CHANNEL START"),
        ("a.ctm", "id 1 x 0.3 go\n", "a.ctm:1: needs a time in seconds, found 'x'"),
        ("a.ctm", "id 1 nan 0.3 go\n", "not after its end"),
        ("a.alignment.txt", 'a ",go" "0.4"\n', "with an end for each word"),
        ("a.lab", "0.0 0.4 go\nword\n", "a.lab:2: needs START END WORD"),
        ("a.json", "{", "not JSON"),
        ("a.json", '{"words": [{"start": 0}]}', "objects with word, start and end"),
        ("a.json", '{"words": [{"word": "a", "start": 3, "end": 1}]}', "needs a start that is not after its end"),
        ("a.json", '{"alignments": [["a", 1]]}', "alignments must be a list"),
    ],
)
def test_damaged_file_is_named_with_what_was_expected(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(CorpusError, match=name) as raised:
        read_alignment(tmp_path / name)
    assert message in str(raised.value)


@pytest.fixture
def clips(tmp_path):
    for name in ("a", "b/c", "d"):
        save_audio(tmp_path / f"clips/{name}.wav", np.zeros(32_000, np.float32))
    return tmp_path / "clips"


def test_files_beside_recordings_are_found_by_suffix(clips):
    (clips / "a.TextGrid").write_text(LONG_TEXTGRID)
    (clips / "b/c.json").write_text(FILES["moshi.json"])
    (clips / "d.json").write_text('{"license": "CC BY"}')  # of no form that is known
    (clips / "d.lab").write_text("go do you hear\n")  # a transcript, as the Montreal aligner reads it
    corpus = open_input(str(clips), "train")
    assert [(each.text, len(each.words)) for each in corpus] == [
        ("go do you hear", 4),
        ("go do you hear", 4),
        ("go do you hear", 0),
    ]


def test_folder_of_alignments_is_searched_by_id_and_by_name(clips, tmp_path):
    (clips / "a.txt").write_text("Go! Do you hear?")
    (tmp_path / "words/b").mkdir(parents=True)
    (tmp_path / "words/a.lab").write_text(FILES["a.lab"])
    (tmp_path / "words/b/c.TextGrid").write_text(LONG_TEXTGRID)
    (tmp_path / "words/more.ctm").write_text("d 1 0.1 0.2 yes\n")
    corpus = open_input(str(clips), "train")
    aligned = attach_alignments(corpus, str(tmp_path / "words"))
    assert [(each.text, each.words) for each in aligned] == [
        ("Go! Do you hear?", WORDS),
        ("go do you hear", WORDS),
        ("yes", ("yes",)),
    ]
    assert aligned.fingerprint != corpus.fingerprint
    (tmp_path / "words/a.json").write_text(FILES["list.json"])
    with pytest.raises(CorpusError, match=r"'a': its words are in both .*a\.json and .*a\.lab"):
        attach_alignments(corpus, str(tmp_path / "words"))[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "no file with word times here; known are .TextGrid"),
        (lambda path: (path.mkdir(), (path / "x.lab").write_text("0 1 a")), "none of the 3 clips"),
    ],
)
def test_alignments_that_fit_nothing_are_refused(clips, tmp_path, make, message):
    make(tmp_path / "words")
    with pytest.raises(CorpusError, match=message):
        attach_alignments(open_input(str(clips), "train"), str(tmp_path / "words"))
