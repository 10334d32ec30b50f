"""Corpora by name, on miniature trees in the layouts that they are published in, and tar archives."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest

from spirit_jax.audio import save_audio
from spirit_jax.corpora import CorpusError, open_input
from spirit_jax.corpora.readers.named import ARCHIVES, NAMED_CORPORA

SILENCE = np.zeros(2000, np.float32)


def sound(path):
    save_audio(path.with_suffix(".wav"), SILENCE)
    if path.suffix != ".wav":
        path.with_suffix(".wav").rename(path)  # the content tells the format


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def table(path, header, *rows):
    text(path, "".join("\t".join(row) + "\n" for row in (header, *rows)))


def librispeech(root):
    for subset, speaker in (("train-clean-100", "84"), ("train-other-500", "99"), ("dev-clean", "7")):
        chapter = root / f"LibriSpeech/{subset}/{speaker}/5"
        sound(chapter / f"{speaker}-5-0000.flac")
        text(chapter / f"{speaker}-5.trans.txt", f"{speaker}-5-0000 GO DO YOU HEAR\n")
    text(
        root / "LibriSpeech/train-clean-100/84/5/84-5.alignment.txt",
        '84-5-0000 ",GO,DO,,YOU,HEAR" "0.010,0.020,0.030,0.040,0.050,0.060"\n',
    )


def libritts(root):
    folder = root / "LibriTTS/dev-clean/84/5"
    sound(folder / "84_5_000001_000000.wav")
    text(folder / "84_5_000001_000000.normalized.txt", "Go! Do you hear?")
    text(folder / "84_5_000001_000000.original.txt", "Go! D'you hear?")


def librilight(root):
    sound(root / "small/100/sea_fairies_0812/01_baum.flac")
    text(root / "small/100/sea_fairies_0812/01_baum.json", '{"speaker": "100", "voice_activity": [[0.1, 3.2]]}')


def mls(root):
    sound(root / "mls_german/train/audio/1844/931/1844_931_000015.flac")
    text(root / "mls_german/train/transcripts.txt", "1844_931_000015\tes gäbe hier nichts\n")


def voxpopuli(root):
    folder = root / "transcribed_data/en"
    sound(folder / "2009/20090112-0900-PLENARY-3-en_20090112-17:13.ogg")
    header = ("id", "raw_text", "normalized_text", "speaker_id", "split", "gender")
    row = ("20090112-0900-PLENARY-3-en_20090112-17:13", "", "i declare", "21", "dev", "male")
    table(folder / "asr_dev.tsv", header, row, ("../../../etc/passwd", "x", "x", "1", "dev", ""))


def expresso(root):
    folder = root / "expresso"
    for name in ("ex01_confused_00001", "ex01_confused_00002"):
        sound(folder / f"audio_48khz/read/ex01/confused/base/{name}.wav")
    sound(folder / "audio_48khz/conversational/ex04-ex01/laughing/ex04-ex01_laughing_001.wav")
    text(folder / "read_transcriptions.txt", "ex01_confused_00001\tWhat?\nex01_confused_00002\tWhy?\n")
    text(folder / "splits/train.txt", "ex01_confused_00001\nex04-ex01_laughing_001\t[0.0, 12.0]\n")
    text(folder / "splits/dev.txt", "ex01_confused_00002\n")


def emovdb(root):
    sound(root / "bea_Amused/amused_1-15_0001.wav")
    text(root / "cmuarctic.data", '( arctic_a0001 "Author of the danger trail." )\n( arctic_b0001 "Other." )\n')


def ljspeech(root):
    sound(root / "LJSpeech-1.1/wavs/LJ001-0001.wav")
    text(root / "LJSpeech-1.1/metadata.csv", 'LJ001-0001|Printing, in 1450 "so"|Printing, in fourteen fifty "so"\n')


def vctk(root):
    for microphone in (1, 2):
        sound(root / f"VCTK-Corpus-0.92/wav48_silence_trimmed/p225/p225_001_mic{microphone}.flac")
    text(root / "VCTK-Corpus-0.92/txt/p225/p225_001.txt", "Please call Stella.\n")


def common_voice(root):
    folder = root / "cv-corpus-17.0/en"
    sound(folder / "clips/common_voice_en_1.mp3")
    header = ("client_id", "path", "sentence_id", "sentence", "up_votes")
    rows = [("a7f", "common_voice_en_1.mp3", "9", 'He said "no', "2"), ("b", "/etc/passwd", "8", "x", "2")]
    table(folder / "train.tsv", header, *rows)


def peoples_speech(root):
    sound(root / "train/clean/a/b.flac")
    item = {"identifier": "show", "training_data": {"duration_ms": [1], "label": ["hi"], "name": ["a/b.flac"]}}
    hostile = {"identifier": "x", "training_data": {"duration_ms": [1], "label": ["x"], "name": ["../../secret.flac"]}}
    text(root / "train/clean.json", json.dumps(item) + "\n" + json.dumps(hostile) + "\n[1]\n")
    sound(root / "secret.flac")


def spotify(root):
    sound(root / "podcasts-audio/6/A/show_6A/4vYO.ogg")
    words = [
        {"startTime": "0.010s", "endTime": "0.020s", "word": "Hello,"},
        {"startTime": "0.020s", "endTime": "0.050s", "word": "you."},
    ]
    best = {"transcript": "Hello, you.", "confidence": 0.9, "words": words}
    repeated = {"words": [{**word, "speakerTag": 1} for word in words]}
    results = {"results": [{"alternatives": [best]}, {"alternatives": [{}]}, {"alternatives": [repeated]}]}
    text(root / "podcasts-transcripts/6/A/show_6A/4vYO.json", json.dumps(results))


CASES = {
    # name -> maker, split, (id, text, speaker, aligned words) of each clip, messages about others
    "librispeech": (
        librispeech,
        "train",
        [("84-5-0000", "GO DO YOU HEAR", "84", 4), ("99-5-0000", "GO DO YOU HEAR", "99", 0)],
        None,
    ),
    "libritts": (libritts, "validation", [("84_5_000001_000000", "Go! Do you hear?", "84", 0)], None),
    "librilight": (librilight, "train", [("small/100/sea_fairies_0812/01_baum", "", "100", 0)], None),
    "mls": (mls, "train", [("1844_931_000015", "es gäbe hier nichts", "1844", 0)], None),
    "voxpopuli": (
        voxpopuli,
        "validation",
        [("20090112-0900-PLENARY-3-en_20090112-17:13", "i declare", "21", 0)],
        "no audio file named '../../../etc/passwd'",
    ),
    "expresso": (expresso, "train", [("ex01_confused_00001", "What?", "ex01", 0)], None),
    "emovdb": (emovdb, "train", [("bea_Amused/amused_1-15_0001", "Author of the danger trail.", "bea", 0)], None),
    "ljspeech": (ljspeech, "train", [("LJ001-0001", 'Printing, in 1450 "so"', "lj", 0)], None),
    "vctk": (vctk, "train", [("p225_001", "Please call Stella.", "p225", 0)], None),
    "common_voice": (
        common_voice,
        "train",
        [("common_voice_en_1", 'He said "no', "a7f", 0)],
        "no audio file named 'passwd'",
    ),
    "peoples_speech": (
        peoples_speech,
        "train",
        [("clean/a/b.flac", "hi", "show", 0)],
        "no audio file '../../secret.flac'",
    ),
    "spotify": (spotify, "train", [("4vYO", "Hello, you.", "show_6A", 2)], None),
}


def test_every_name_has_a_case():
    assert set(CASES) == set(NAMED_CORPORA)


def read_all(corpus):
    clips, errors = [], []
    for index in range(len(corpus)):
        try:
            one = corpus[index]
            assert one.load().size == SILENCE.size
            clips.append((one.id, one.text, one.speaker, len(one.words)))
        except CorpusError as error:
            errors.append(str(error))
    return clips, errors


@pytest.mark.parametrize("name", CASES)
def test_clips_of_the_published_layout(tmp_path, name):
    make, split, expected, error = CASES[name]
    make(tmp_path)
    corpus = open_input(f"{name}:{tmp_path}", split)
    clips, errors = read_all(corpus)
    assert clips == expected
    assert (corpus.name, corpus.split, corpus.has_speech) == (name, split, True)
    assert error is None or error in errors[0]
    # the directory that the archive unpacks to may be named as well
    (inner,) = [path for path in tmp_path.iterdir() if path.is_dir()] if name in ("librispeech", "mls") else [tmp_path]
    assert read_all(open_input(f"{name}:{inner}", split))[0] == expected


def test_splits_are_those_of_the_publisher(tmp_path):
    librispeech(tmp_path)
    assert open_input(f"librispeech:{tmp_path}", "train").splits == ("train", "validation")
    assert [each.id for each in open_input(f"librispeech:{tmp_path}", "train-other-500")] == ["99-5-0000"]
    assert [each.id for each in open_input(f"librispeech:{tmp_path}", "validation")] == ["7-5-0000"]
    with pytest.raises(CorpusError, match="no clip of split 'test'.*splits here: train, validation"):
        open_input(f"librispeech:{tmp_path}", "test")


@pytest.mark.parametrize("name", [*NAMED_CORPORA, *ARCHIVES])
def test_empty_directory_is_named(tmp_path, name):
    with pytest.raises(CorpusError, match=str(tmp_path)):
        open_input(f"{name}:{tmp_path}", "train")
    with pytest.raises(CorpusError, match="is not a directory"):
        open_input(f"{name}:{tmp_path}/none", "train")


def test_unknown_name_lists_those_that_are_known(tmp_path):
    with pytest.raises(CorpusError, match="'librispech' is not the name of a corpus: librispeech, libritts"):
        open_input(f"librispech:{tmp_path}", "train")
    (tmp_path / "ljspeech:x.jsonl").write_text('{"text": "a file with a colon in its name"}')
    assert len(open_input(f"{tmp_path}/ljspeech:x.jsonl", "train")) == 1


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    path = tmp_path_factory.mktemp("wav") / "a.wav"
    save_audio(path, SILENCE)
    return path.read_bytes()


def archive(path, members, links=()):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)


def test_webdataset_shards_are_read_in_place(tmp_path, wav):
    described = {"text": "go do", "speaker": "jane", "words": [{"word": "go", "start_ms": 0, "end_ms": 50}], "url": "x"}
    archive(
        tmp_path / "train-000.tar",
        [("./a/0.wav", wav), ("./a/0.json", json.dumps(described).encode()), ("1.wav", wav), ("1.txt", b"yes\n")],
        links=[("2.wav", "/etc/passwd")],
    )
    archive(tmp_path / "dev-000.tar", [("../../3.wav", wav)])
    corpus = open_input(f"webdataset:{tmp_path}", "train")
    assert corpus.splits == ("train", "validation")
    assert read_all(corpus) == ([("a/0", "go do", "jane", 1), ("1", "yes", "", 0)], [])  # the link is passed over
    assert [each.id for each in open_input(f"webdataset:{tmp_path}", "validation")] == ["../../3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev-000.tar", "train-000.tar"]  # nothing is unpacked


def test_equal_keys_of_two_shards_are_different_clips(tmp_path, wav):
    for name in ("x", "y"):
        archive(tmp_path / f"{name}.tar", [("0.wav", wav)])
    assert [each.id for each in open_input(f"webdataset:{tmp_path}", "train")] == ["x/0", "y/0"]


def test_damaged_archives_and_descriptions_are_named(tmp_path, wav):
    archive(tmp_path / "a.tar", [("0.wav", wav), ("1.wav", wav), ("1.json", b"[1]"), ("2.wav", wav), ("2.json", b"{")])
    (tmp_path / "b.tar").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    clips, errors = read_all(open_input(f"webdataset:{tmp_path}", "train"))
    assert [clip[0] for clip in clips] == ["0"]
    assert ["a.tar:1" in errors[0], "a.tar:2" in errors[1], "decompress it" in errors[2]] == [True] * 3


def test_shar_has_cuts_with_their_recordings(tmp_path, wav):
    alignment = {"word": [["go", 0.01, 0.02, 0.9], ["do", 0.04, 0.02, None]]}
    supervision = {"id": "s", "start": 0, "duration": 0.1, "text": "Go, do!", "speaker": "jane", "alignment": alignment}
    cuts = [
        {"id": "a.b-1", "start": 0, "duration": 0.125, "supervisions": [supervision], "type": "MonoCut"},
        {"id": "lost", "start": 0, "duration": 0.125, "supervisions": [], "type": "MonoCut"},
        {"id": "bad", "start": 0, "duration": 0.125, "supervisions": [{"text": 5}], "type": "MonoCut"},
    ]
    lines = "".join(json.dumps(cut) + "\n" for cut in cuts)
    (tmp_path / "cuts.000000.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    archive(
        tmp_path / "recording.000000.tar",
        [("a.b-1.wav", wav), ("a.b-1.json", b"{}"), ("bad.wav", wav), ("bad.json", b"")],
    )
    corpus = open_input(f"shar:{tmp_path}", "train")
    clips, errors = read_all(corpus)
    assert clips == [("a.b-1", "Go, do!", "jane", 2)]
    assert corpus[0].spans_ms.tolist() == [[10, 30], [40, 60]]
    assert "cuts.000000.jsonl.gz:2: no recording of cut 'lost'" in errors[0]
    assert "cuts.000000.jsonl.gz:3: needs supervisions" in errors[1]


def test_a_row_that_was_cut_short_costs_one_clip(tmp_path):
    common_voice(tmp_path)
    with (tmp_path / "cv-corpus-17.0/en/train.tsv").open("a") as file:
        file.write("a7f\tcommon_voice_en_1.mp3\n")
    clips, errors = read_all(open_input(f"common_voice:{tmp_path}", "train"))
    assert [clip[0] for clip in clips] == ["common_voice_en_1"]
    assert "train.tsv: a row lacks a column (KeyError('sentence'))" in errors[1]


def test_a_manifest_of_cuts_keeps_their_word_times(tmp_path):
    save_audio(tmp_path / "a.wav", SILENCE)
    alignment = {"word": [["go", 0.01, 0.02, 0.9], ["do", 0.04, 0.02, None]]}
    cut = {
        "id": "a",
        "start": 0.01,
        "duration": 0.1,
        "recording": {"sources": [{"type": "file", "source": "a.wav"}]},
        "supervisions": [{"text": "Go, do!", "speaker": "jane", "alignment": alignment}],
    }
    text(tmp_path / "cuts.jsonl", json.dumps(cut) + "\n")
    (one,) = open_input(str(tmp_path / "cuts.jsonl"), "train")
    assert (one.text, one.speaker, one.words) == ("Go, do!", "jane", ("go", "do"))
    assert one.spans_ms.tolist() == [[10, 30], [40, 60]]
    assert one.load().size == 1600
