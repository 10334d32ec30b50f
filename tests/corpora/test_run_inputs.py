"""Options for the tokenizers and records of a run: made again before the first step, refused after it."""

from typing import Any

import pytest

from spirit_jax.config import to_dict
from spirit_jax.corpora import Utterance, write_corpus
from spirit_jax.corpora.prepare_config import PrepareConfig
from spirit_jax.corpora.run_inputs import RunInputError, RunInputs, put_inputs, run_vocabulary
from spirit_jax.data.records import RecordSource
from spirit_jax.vocabulary import Vocabulary

WORDS = "sun moon star rain snow wind leaf tree root stone river sea salt sand fire smoke bird fish wolf bear".split()


@pytest.fixture
def corpus(tmp_path):
    """A prepared corpus of text."""
    texts = [" ".join(WORDS[(index * step) % 20] for step in range(1, 12)) for index in range(60)]
    documents = [Utterance(str(index), None, text) for index, text in enumerate(texts)]
    return write_corpus(tmp_path, "prose", {"train": documents}, "Words.").parent


def _inputs(corpora, *, tokenizer=None, seed=0, **options: Any):
    prepare = PrepareConfig([str(each) for each in corpora], **{"text_pieces": 300} | options) if corpora else None
    return RunInputs("base", seed, tokenizer and str(tokenizer), None, prepare)


def _config(inputs):
    """The part of a run's config that holds these inputs."""
    values = to_dict(inputs)
    return {"variant": values["variant"], "seed": values["seed"], "prepare": values["prepare"]}


def _put(run, inputs, before=None, *, has_steps=False):
    put_inputs(run, inputs, None if before is None else _config(before), has_steps=has_steps)
    return Vocabulary.load(run / "tokenizer", "base").text_size


def test_other_options_of_prepare_are_used_before_the_first_step_and_refused_after_it(corpus, tmp_path):
    run, inputs, changed = tmp_path / "run", _inputs([corpus]), _inputs([corpus], text_pieces=320)
    assert _put(run, inputs) == 300
    assert _put(run, changed, inputs) == 320
    assert _put(run, changed, changed) == 320
    with pytest.raises(RunInputError, match=r"trained with other inputs \(prepare.text_pieces 320 -> 300\): choose"):
        _put(run, inputs, changed, has_steps=True)
    for other, option in (
        (_inputs([corpus], text_pieces=320, validation_fraction=0.5), "prepare.validation_fraction 0.05 -> 0.5"),
        (_inputs([corpus], text_pieces=320, seed=1), "seed 0 -> 1"),
    ):
        with pytest.raises(RunInputError, match=option):
            _put(run, other, changed, has_steps=True)


def test_the_same_corpus_at_another_place_changes_nothing(corpus, tmp_path):
    run, inputs = tmp_path / "run", _inputs([corpus])
    _put(run, inputs)
    before = (run / "records" / "prose" / "metadata.json").stat().st_mtime_ns
    corpus.rename(tmp_path / "renamed")
    (tmp_path / "link").symlink_to(tmp_path / "renamed")
    for spelled in (tmp_path / "renamed", f"{tmp_path}/./link/"):
        for has_steps in (True, False):
            assert _put(run, _inputs([spelled]), inputs, has_steps=has_steps) == 300
    assert (run / "records" / "prose" / "metadata.json").stat().st_mtime_ns == before
    # after the first step, a corpus that is gone is not missed
    assert _put(run, inputs, inputs, has_steps=True) == 300


def test_another_corpus_is_used_before_the_first_step_and_refused_after_it(corpus, tmp_path):
    run, inputs = tmp_path / "run", _inputs([corpus])
    _put(run, inputs)
    documents = [Utterance(str(index), None, " ".join(WORDS[index:] + WORDS[:index]) * 3) for index in range(20)]
    other = _inputs([write_corpus(tmp_path / "other", "prose", {"train": documents}, "Words.").parent])
    with pytest.raises(RunInputError, match=r"prepare.corpora \[.*prose'\] -> \[.*other/prose'\]"):
        _put(run, other, inputs, has_steps=True)
    assert len(RecordSource(run / "records" / "prose", "train")) > 50
    _put(run, other, inputs)
    assert len(RecordSource(run / "records" / "prose", "train")) < 20


def test_another_tokenizer_is_copied_before_the_first_step_and_refused_after_it(tmp_path):
    for size in (300, 320):
        Vocabulary.train([" ".join(WORDS)] * 40, size, "base").save(tmp_path / str(size))
    run, small, large = tmp_path / "run", *(_inputs([], tokenizer=tmp_path / str(size)) for size in (300, 320))
    assert _put(run, small) == 300
    assert _put(run, large, small) == 320
    with pytest.raises(RunInputError, match="tokenizer 823 tokens -> .*300"):
        _put(run, small, large, has_steps=True)
    (tmp_path / "320").rename(tmp_path / "gone")
    assert _put(run, large, large, has_steps=True) == 320
    assert run_vocabulary(run, large).text_size == 320
