"""pocketsphinx against the exact word times of the bundled corpus."""

import numpy as np
import pytest

from spirit_jax.corpora import open_corpus
from spirit_jax.corpora.alignment.aligner import AlignmentError, WordTime, fill_gaps
from spirit_jax.corpora.alignment.spelling import spell
from spirit_jax.corpora.alignment.sphinx import SphinxAligner

CLIPS = 12


@pytest.fixture(scope="module")
def aligner():
    return SphinxAligner()


@pytest.fixture(scope="module")
def utterances():
    corpus = open_corpus("spirit_mini", "validation")
    return [corpus[index] for index in range(CLIPS)]


def test_boundaries_are_near_the_true_ones(aligner, utterances):
    found = aligner.align([u.load() for u in utterances], [spell(" ".join(u.words)) for u in utterances])
    errors = [
        np.abs(np.array([(time.start_ms, time.end_ms) for time in times]) - utterance.spans_ms)
        for times, utterance in zip(found, utterances, strict=True)
    ]
    # 13 ms over the 64 clips of the split, in frames of 10 ms
    assert np.concatenate(errors).mean() < 20


def test_words_of_another_transcript_score_lower(aligner, utterances):
    def scores(shift):
        others = utterances[shift:] + utterances[:shift]
        found = aligner.align([u.load() for u in utterances], [spell(u.text) for u in others])
        return [time.score for times in found if not isinstance(times, AlignmentError) for time in times]

    right, wrong = scores(0), scores(3)
    assert np.median(right) > 2 * np.median(wrong)


def test_punctuation_unknown_words_and_other_scripts_keep_their_places(aligner, utterances):
    audio, words = utterances[0].load(), list(utterances[0].words)
    assert words[3] == "sailor"
    (times,) = aligner.align([audio], [spell(" ".join([*words[:3], "saylorr", "—", *words[4:], "日本"]))])
    assert [time.interpolated for time in times] == [False] * 4 + [True] + [False] * (len(words) - 4) + [True]
    assert abs(times[3].start_ms - utterances[0].spans_ms[3, 0]) <= 50
    edges = [edge for time in times for edge in (time.start_ms, time.end_ms)]
    assert edges == sorted(edges)
    assert edges[-1] <= audio.size / 16


def test_a_transcript_without_words_or_too_long_for_the_clip_is_an_error_of_that_clip(aligner, utterances):
    audio = utterances[0].load()
    results = aligner.align(
        [audio, audio[:3200], audio], [spell("— 日本"), spell(utterances[0].text), spell(utterances[0].text)]
    )
    assert [isinstance(result, AlignmentError) for result in results] == [True, True, False]


def test_gaps_are_shared_evenly():
    known = WordTime(100, 200, 0.5), WordTime(400, 500, 0.5)
    filled = fill_gaps([None, known[0], None, None, known[1], None], 700)
    assert [(time.start_ms, time.end_ms) for time in filled] == [
        (0, 100),
        (100, 200),
        (200, 300),
        (300, 400),
        (400, 500),
        (500, 700),
    ]
    assert [time.interpolated for time in filled] == [True, False, True, True, False, True]


def test_a_clip_aligns_the_same_after_any_other(aligner, utterances):
    audio, words = [u.load() for u in utterances[:3]], [spell(u.text) for u in utterances[:3]]
    assert aligner.align(audio, words) == aligner.align(audio[::-1], words[::-1])[::-1]


def test_silence_has_no_words(aligner):
    for samples, reason in ((32_000, "silent"), (0, "empty")):
        (error,) = aligner.align([np.full(samples, 1e-5, np.float32)], [spell("hello there")])
        assert isinstance(error, AlignmentError)
        assert reason in str(error)
