"""Error rates, F0 frame error and bitrates against their definitions."""

import jiwer
import numpy as np
import pytest

from spirit_jax.evaluation.metrics import before_word, character_errors, normalizer, word_errors
from spirit_jax.evaluation.tasks.resynthesis import f0_frame_error, unit_bits
from spirit_jax.units import SpeechUnits
from tests.support.sounds import buzz

PAIRS = [("the cat sat down", "the bat sat"), ("one two", "one two three four"), ("alone", ""), ("same", "same")]


def test_summed_errors_give_jiwers_rates_of_the_corpus():
    references, hypotheses = zip(*PAIRS, strict=True)
    for count, rate in ((word_errors, jiwer.wer), (character_errors, jiwer.cer)):
        found = [count(*pair) for pair in PAIRS]
        total = sum(e.errors for e in found) / sum(e.length for e in found)
        assert total == pytest.approx(rate(list(references), list(hypotheses)))


def test_english_normalization_is_whispers():
    assert normalizer("english")("Mr. Smith's  colour, 21!") == "mister smith is color 21"
    assert normalizer("none")(" A  b ") == "A b"


def test_a_transcript_ends_before_the_stop_word():
    assert before_word("The cat sat. Stop. And more", "stop") == "The cat sat"
    assert before_word("Nonstop music", "stop") == "Nonstop music"
    assert before_word("Stop it", "") == "Stop it"


def test_f0_frame_error_counts_voicing_and_pitch():
    low, high, silence = buzz(120.0), buzz(180.0), np.zeros(16_000, np.float32)
    assert f0_frame_error(low, low) == (0, 50)
    wrong, frames = f0_frame_error(low, high)
    assert wrong / frames > 0.9
    wrong, frames = f0_frame_error(low, silence)
    assert wrong / frames > 0.9


def test_bits_are_the_papers_225_and_307_a_second():
    ten_seconds = SpeechUnits(np.zeros(250, int), pitch=np.arange(125) % 64, style=np.zeros(10, int))
    base = ten_seconds.without_expression()
    assert unit_bits(base, deduplicated=False) / 10 == pytest.approx(225, abs=1.2)  # 25 log2(501) = 224.2
    assert unit_bits(ten_seconds, deduplicated=False) / 10 == pytest.approx(307, abs=1.2)
    assert unit_bits(base, deduplicated=True) == pytest.approx(np.log2(501))
