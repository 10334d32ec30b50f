"""Encoding of corpora: records and summaries, unusable utterances, and work that is not repeated."""

import dataclasses
import json
import logging

import numpy as np
import pytest

from spirit_jax.corpora import CorpusError, Utterance, open_corpus, open_input, write_corpus
from spirit_jax.corpora.blocks import BlockEncoder
from spirit_jax.corpora.encoding import EncodingError, OutputError, encode_corpus, encode_split
from spirit_jax.data.records import read_metadata, read_records
from spirit_jax.data.unit_record import RecordError
from spirit_jax.speech import SpeechTokenizer, SpeechTokenizerConfig, train_speech_tokenizer

SMALL = SpeechTokenizerConfig(phonetic_units=16, pitch_units=8, style_units=2)


@pytest.fixture(scope="module")
def utterances():
    corpus = open_corpus("spirit_mini", "train")
    return [corpus[index] for index in range(20)]


@pytest.fixture(scope="module")
def tokenizers(utterances, tmp_path_factory):
    """Two tokenizers of different seeds."""
    found = []
    for seed in range(2):
        directory = tmp_path_factory.mktemp("tokenizer")
        train_speech_tokenizer(utterances, SMALL, directory, seed, progress=False)
        found.append(SpeechTokenizer.from_pretrained(directory))
    return found


@pytest.fixture(scope="module")
def corpus(utterances, tmp_path_factory):
    """18 usable and 5 unusable utterances in train, two in validation."""
    bad = [
        dataclasses.replace(utterances[0], id="corrupt", audio=utterances[0].audio[:600]),
        dataclasses.replace(utterances[0], id="no-transcript", text=""),
        dataclasses.replace(utterances[0], id="late-words", spans_ms=utterances[0].spans_ms + 9000),
        dataclasses.replace(utterances[0], id="unknown-format", audio=b"RIFFnothing"),
        dataclasses.replace(utterances[0], id="blank-word", words=("a b", *utterances[0].words[1:])),
    ]
    train = [*utterances[:4], *bad[:2], *utterances[4:18], *bad[2:]]
    return write_corpus(
        tmp_path_factory.mktemp("corpora"), "mixed", {"train": train, "validation": utterances[18:]}, "Some bad."
    )


def test_records_hold_the_units_of_their_utterances(corpus, utterances, tokenizers, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        summaries = encode_corpus(corpus, tokenizers[0], tmp_path, progress=False)
    records = [*read_records(tmp_path, "train"), *read_records(tmp_path, "validation")]
    assert [record.id for record in records] == [utterance.id for utterance in utterances]
    seconds = 0.0
    for record, utterance in zip(records, utterances, strict=True):
        audio = utterance.load()
        seconds += audio.size / 16_000
        assert (record.text, record.words, record.speaker) == (utterance.text, utterance.words, utterance.speaker)
        np.testing.assert_array_equal(record.spans_ms, utterance.spans_ms)
        assert record.units == tokenizers[0].encode(audio)
        assert abs(record.duration_ms - audio.size / 16) <= 0.5
    # Each bad one is named once, with its reason, and counted.
    lines = [entry.getMessage() for entry in caplog.records]
    assert len(lines) == summaries["train"].bad == 5
    for name, reason in [
        ("corrupt", ""),
        ("no-transcript", "transcript is empty"),
        ("late-words", "outside the"),
        ("unknown-format", "cannot be decoded"),
        ("blank-word", "holds a space"),
    ]:
        assert len([line for line in lines if f"'{name}'" in line and reason in line]) == 1, (name, lines)
    train, validation = summaries["train"], summaries["validation"]
    assert (train.records, validation.records, validation.bad) == (18, 2, 0)
    assert train.hours + validation.hours == pytest.approx(seconds / 3600)
    hubert = sum(1 + np.count_nonzero(np.diff(record.units.hubert)) for record in records[:18] if record.units)
    assert train.tokens_per_second["Hu"] == pytest.approx(hubert / (train.hours * 3600))
    assert train.words == sum(len(utterance.words) for utterance in utterances[:18])
    assert "18 records" in str(train)
    assert "5 bad" in str(train)
    assert read_metadata(tmp_path)["units"] == tokenizers[0].fingerprint


def test_first_unusable_utterance_is_an_error_without_skip_bad(corpus, tokenizers, tmp_path):
    with pytest.raises(CorpusError, match="'corrupt'"):
        encode_corpus(corpus, tokenizers[0], tmp_path, skip_bad=False, progress=False)
    assert not list(tmp_path.glob("*.array_record"))


def test_finished_splits_are_kept_and_lost_files_made_again(corpus, tokenizers, tmp_path):
    def encode(tokenizer, directory=tmp_path, overwrite=False):
        summaries = encode_corpus(corpus, tokenizer, directory, progress=False, overwrite=overwrite)
        return summaries, {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}

    first, files = encode(tokenizers[0])
    again, same = encode(tokenizers[0])
    assert again == first  # down to the seconds that it took
    assert same == files
    _, elsewhere = encode(tokenizers[0], tmp_path / "elsewhere")
    assert all(elsewhere[name] == files[name] for name in files if name.endswith(".array_record"))
    for overwrite in (False, True):
        with pytest.raises(RecordError, match="units of"):  # other units do not mix into a directory
            encode(tokenizers[1], overwrite=overwrite)
    (tmp_path / "validation-00000-of-00001.array_record").unlink()
    redone, repaired = encode(tokenizers[0])
    assert redone["train"] == first["train"]
    name = "validation-00000-of-00001.array_record"
    assert repaired[name] == files[name]
    assert json.loads(repaired["encoding-validation.json"])["records"] == 2


def test_shards_hold_all_records(corpus, tokenizers, tmp_path):
    encode_corpus(corpus, tokenizers[0], tmp_path, ("train",), shards=3, progress=False)
    assert len(list(tmp_path.glob("train-*-of-00003.array_record"))) == 3
    assert len({record.id for record in read_records(tmp_path, "train")}) == 18


def test_text_needs_no_tokenizer(tmp_path, caplog):
    stories = [Utterance("a", None, "One fine day."), Utterance("empty", None, "  "), Utterance("b", None, "Two words")]
    where = write_corpus(tmp_path, "stories", {"train": stories}, "Stories.")
    with caplog.at_level(logging.WARNING):
        summary = encode_corpus(where, None, tmp_path / "records", ("train",), progress=False)["train"]
    records = read_records(tmp_path / "records", "train")
    assert [(record.id, record.text, record.units) for record in records] == [
        ("a", "One fine day.", None),
        ("b", "Two words", None),
    ]
    assert (summary.records, summary.bad, summary.words, summary.hours, summary.tokens_per_second) == (2, 1, 5, 0.0, {})
    assert "'empty'" in caplog.text


def test_unusable_corpora_are_refused(corpus, tokenizers, utterances, tmp_path):
    with pytest.raises(EncodingError, match="'mixed' holds speech: a speech tokenizer is needed"):
        encode_corpus(corpus, None, tmp_path / "records", progress=False)
    with pytest.raises(CorpusError, match="no split 'test'"):
        encode_corpus(corpus, tokenizers[0], tmp_path / "records", ("test",), progress=False)
    where = write_corpus(tmp_path, "unusable", {"train": [dataclasses.replace(utterances[0], audio=b"?")]}, "Bad.")
    with pytest.raises(EncodingError, match="none of 1 utterances of split 'train' can be used"):
        encode_corpus(where, tokenizers[0], tmp_path / "records", ("train",), progress=False)
    assert not list((tmp_path / "records").glob("*.array_record"))


def test_changed_corpus_is_encoded_again(tmp_path):
    path = tmp_path / "pages.jsonl"
    for count, changed in ((1, False), (2, True), (2, False)):
        path.write_text("".join(f'{{"text": "page {number}"}}\n' for number in range(count)))
        opened = open_input(str(path), "train")
        if changed:
            with pytest.raises(OutputError, match="split 'train' from another input; .*--overwrite"):
                encode_split(opened, None, tmp_path / "records", progress=False)
        summary = encode_split(opened, None, tmp_path / "records", progress=False, overwrite=True)
        assert summary is not None
        assert summary.records == count
        assert [record.text for record in read_records(tmp_path / "records", "train")] == ["page 0", "page 1"][:count]


def test_blocks_do_not_depend_on_the_order_of_encoding(tmp_path, monkeypatch):
    monkeypatch.setattr("spirit_jax.corpora.blocks.TEXT_BLOCK", 3)
    path = tmp_path / "pages.jsonl"
    path.write_text("".join(f'{{"text": "page {number}"}}\n' for number in range(8)))
    corpus = open_input(str(path), "train")

    def records(blocks):
        with BlockEncoder(corpus, None) as encoder:
            assert encoder.count == 3
            return {block: encoder.encode(block).records for block in blocks}

    assert records([2, 0, 1]) == records([0, 1, 2])
    assert [len(block) for block in records([0, 1, 2]).values()] == [3, 3, 2]
