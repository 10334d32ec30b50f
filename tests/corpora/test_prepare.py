"""Tokenizers and records of a run from manifests, folders and text, and the command that trains tokenizers alone."""

import json

import pytest

from spirit_jax.audio import load_audio
from spirit_jax.core import buckets
from spirit_jax.corpora import CorpusError, open_corpus
from spirit_jax.corpora.prepare import prepare
from spirit_jax.corpora.prepare_config import PrepareConfig
from spirit_jax.corpora.resynthesis import check_resynthesis, mel_distance, pitch_errors, word_error_rate
from spirit_jax.data.records import read_records
from spirit_jax.speech import SpeechTokenizer, SpeechTokenizerConfig
from spirit_jax.train_tokenizers import main
from spirit_jax.vocabulary import Vocabulary

SMALL = SpeechTokenizerConfig(phonetic_units=40, pitch_units=8, style_units=2)
CLIPS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A manifest with word times, whose last two lines cannot be used, and a file of text."""
    directory = tmp_path_factory.mktemp("data")
    corpus = open_corpus("spirit_mini", "train")
    lines = []
    for index in range(CLIPS):
        utterance = corpus[index]
        (directory / f"{index}.ogg").write_bytes(utterance.audio_bytes())
        words = [
            {"word": word, "start_ms": int(start), "end_ms": int(end)}
            for word, (start, end) in zip(utterance.words, utterance.spans_ms, strict=True)
        ]
        lines.append({"audio": f"{index}.ogg", "text": utterance.text, "words": words})
    lines += [{"audio": "missing.wav", "text": "nothing"}, {"text": "no audio"}]
    (directory / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stories = open_corpus("spirit_mini_text", "train")
    (directory / "pages.jsonl").write_text(
        "".join(json.dumps({"text": stories[index].text}) + "\n" for index in range(200))
    )
    return directory


def test_run_is_prepared_from_a_manifest_and_text(data, tmp_path, capsys):
    config = PrepareConfig(
        corpora=[str(data / "mine.jsonl"), str(data / "pages.jsonl")],
        text_pieces=320,
        speech_tokenizer=SMALL,
        validation_fraction=0.2,
    )
    prepare(config, tmp_path, "expressive", 0)
    assert "mine train: " in capsys.readouterr().out
    splits = {split: list(read_records(tmp_path / "records/mine", split)) for split in ("train", "validation")}
    assert sum(map(len, splits.values())) == CLIPS
    assert 1 <= len(splits["validation"]) < CLIPS / 2
    assert all(record.words and record.units is not None for record in splits["train"])
    assert len(list(read_records(tmp_path / "records/pages", "validation"))) > 10
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    prepare(config, tmp_path, "expressive", 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_two_corpora_of_one_name_are_refused(data, tmp_path):
    (tmp_path / "mine.jsonl").write_bytes((data / "pages.jsonl").read_bytes())
    config = PrepareConfig(corpora=[str(data / "mine.jsonl"), str(tmp_path / "mine.jsonl")])
    with pytest.raises(CorpusError, match="2 corpora have the name 'mine'"):
        prepare(config, tmp_path / "run", "base", 0)


@pytest.fixture(scope="module")
def tokenizers(data, tmp_path_factory):
    """Tokenizers that the command trained."""
    output = tmp_path_factory.mktemp("tokenizers") / "mine"
    arguments = ["--input", str(data / "mine.jsonl"), "--input", str(data / "pages.jsonl"), "--output", str(output)]
    sizes = ["--speech_tokenizer.phonetic_units", "40", "--speech_tokenizer.pitch_units", "8"]
    main([*arguments, *sizes, "--speech_tokenizer.style_units", "2", "--text_pieces", "320"])
    return output, arguments


def test_command_trains_both_tokenizers(tokenizers, capsys):
    output, arguments = tokenizers
    assert Vocabulary.load(output / "tokenizer", "expressive").size > 320
    utterance = open_corpus("spirit_mini", "validation")[0]
    units = SpeechTokenizer.from_pretrained(output).encode(utterance.load())
    assert 5 < len(set(units.hubert.tolist())) <= 40
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "a tokenizer is here" in capsys.readouterr().err


def test_tokenizers_are_written_to_a_bucket(data, bucket, tmp_path, capsys):
    arguments = ["--input", str(data / "pages.jsonl"), "--text_pieces", "320", "--output"]
    for output in (str(tmp_path / "mine"), f"{bucket}/mine"):
        main([*arguments, output])
    contents = {
        name: buckets.read_object(f"{bucket}/mine/{name}") for name in sorted(buckets.list_objects(f"{bucket}/mine"))
    }
    files = sorted(path for path in (tmp_path / "mine").rglob("*") if path.is_file())
    assert contents == {str(path.relative_to(tmp_path / "mine")): path.read_bytes() for path in files}
    with pytest.raises(SystemExit):
        main([*arguments, f"{bucket}/mine"])
    assert f"{bucket}/mine/tokenizer: a tokenizer is here" in capsys.readouterr().err


class HearsRecordings:
    """A recognizer that knows the recordings of a corpus by their lengths, and understands nothing else."""

    name = "hears recordings"

    def __init__(self, corpus):
        self._texts = {utterance.load().size: utterance.text for utterance in corpus}

    def transcribe(self, clips):
        return [self._texts.get(clip.size, "") for clip in clips]


def test_check_compares_recordings_with_their_resynthesis(tokenizers, tmp_path, caplog):
    corpus = open_corpus("spirit_mini", "validation")
    tokenizer = SpeechTokenizer.from_pretrained(tokenizers[0])
    report = check_resynthesis(corpus, tokenizer, tmp_path, HearsRecordings(corpus), count=3)
    assert len(report.clips) == 3
    assert (report.recording_error_rate, report.resynthesis_error_rate) == (0.0, 1.0)
    assert "the word error rate rises by 1.00" in caplog.text
    assert 2 < report.mel_distance_db < 10
    assert 0 < report.voicing_error < 0.5
    recording, spoken = (load_audio(tmp_path / f"0.{name}.wav") for name in ("recording", "resynthesis"))
    assert report.mel_distance_db > 0.2 * mel_distance(recording, spoken)
    assert abs(recording.size - spoken.size) < 2000
    assert json.loads((tmp_path / "report.json").read_text())["clips"] == list(report.clips)


def test_distances_are_zero_for_the_recording_itself_and_large_for_another():
    corpus = open_corpus("spirit_mini", "validation")
    first, other = corpus[0].load(), corpus[1].load()
    assert mel_distance(first, first) == 0
    assert mel_distance(first, 0.1 * first) < 0.1  # loudness does not count
    assert mel_distance(first, other) > 5
    assert pitch_errors(first, first) == (0.0, 0.0)
    assert pitch_errors(first, other)[1] > 0.2


def test_word_error_rate_counts_spoken_words():
    assert word_error_rate(["Press 2, now!"], ["press two now"]) == 0
    assert word_error_rate(["a b c d"], ["a x d"]) == 0.5
    assert word_error_rate([""], [""]) == 0
