"""Prepared corpora: what is written reads back, and errors name what is wrong."""

import dataclasses

import numpy as np
import pytest

from spirit_jax.corpora import CorpusError, Utterance, open_corpus, write_corpus
from tests.support.clips import RATE, clip


def test_written_corpus_reads_back(tmp_path):
    unaligned = dataclasses.replace(clip(), id="unaligned", words=(), spans_ms=np.zeros((0, 2), np.int32), speaker="")
    where = write_corpus(tmp_path, "mine", {"train": [clip(), unaligned], "test": [clip()]}, "A clip.")
    for directory in (where, where.parent):
        corpus = open_corpus(directory, "train")
        assert (corpus.name, corpus.splits, len(corpus), corpus.has_speech) == ("mine", ("test", "train"), 2, True)
        for stored, written in zip(corpus, [clip(), unaligned], strict=True):
            for field in ("id", "audio", "text", "words", "speaker"):
                assert getattr(stored, field) == getattr(written, field)
            np.testing.assert_array_equal(stored.spans_ms, written.spans_ms)
    assert open_corpus(where, "train").fingerprint != open_corpus(where, "test").fingerprint
    assert corpus[-1].load().shape == (RATE,)
    with pytest.raises(IndexError):
        corpus[2]


def test_failed_write_leaves_the_old_corpus(tmp_path):
    where = write_corpus(tmp_path, "mine", {"train": [clip()]}, "A clip.")
    with pytest.raises(CorpusError, match="all have audio or that all have none"):
        write_corpus(tmp_path, "mine", {"train": [clip(), Utterance("t", None, "text")]}, "Mixed.")
    with pytest.raises(ValueError, match="shorter"):  # spans that do not fit the words
        write_corpus(tmp_path, "mine", {"train": [dataclasses.replace(clip(), words=("one", "two", "three"))]}, "Bad.")
    assert len(open_corpus(where, "train")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_unknown_corpora_and_splits_are_named(tmp_path):
    with pytest.raises(CorpusError, match="bundled ones are asterisk_prompts, spirit_mini, spirit_mini_text"):
        open_corpus("no_such_corpus", "train")
    with pytest.raises(CorpusError, match="has no split 'dev'; it has train, validation"):
        open_corpus("spirit_mini", "dev")
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(CorpusError, match="cannot be opened"):
        open_corpus(tmp_path, "train")


def test_damaged_record_files_are_named(tmp_path):
    where = write_corpus(tmp_path, "mine", {"train": [clip()] * 40}, "A clip.")
    (file,) = where.glob("*.array_record*")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(CorpusError, match="mine"):
        list(open_corpus(where, "train"))
    file.unlink()
    with pytest.raises(CorpusError, match="mine"):
        list(open_corpus(where, "train"))
