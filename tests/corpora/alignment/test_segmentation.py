"""Long recordings are cut at pauses and sentence ends."""

import importlib.util
import itertools

import numpy as np
import pytest

from spirit_jax.corpora import open_corpus
from spirit_jax.corpora.alignment.segmentation import (
    choose_pieces,
    ends_sentence,
    piece_bounds,
    voice_pieces,
)
from spirit_jax.corpora.alignment.voice_activity import (
    EnergyActivity,
    SileroActivity,
    VoiceActivityError,
    open_voice_activity,
)

RATE = 16_000


def spans(*items):
    return np.array(items)


def tone(seconds, level=0.3):
    return level * np.sin(2 * np.pi * 200 * np.arange(round(seconds * RATE)) / RATE)


def noise(seconds, level):
    return np.random.default_rng(0).normal(0, level, round(seconds * RATE))


@pytest.mark.parametrize("word", ["end.", "really?", "“stop!”", "はい。", "wait..."])
def test_sentence_ends_are_known(word):
    assert ends_sentence(word)


def test_a_comma_ends_no_sentence():
    assert not ends_sentence("however,")


@pytest.mark.parametrize("floor", [0.0, 0.003])
def test_voice_is_found_above_noise(floor):
    audio = np.concatenate([tone(0.5, 0), tone(1.0), tone(0.1, 0), tone(0.5), tone(1.0, 0), tone(0.5), tone(0.5, 0)])
    audio = (audio + noise(audio.size / RATE, floor)).astype(np.float32)
    found = EnergyActivity().spans(audio)
    # the pause of 100 ms is filled
    np.testing.assert_allclose(found, [[500, 2100], [3100, 3600]], atol=40)


@pytest.mark.parametrize("seconds", [0.0, 0.01, 1.0])
def test_silence_has_no_voice(seconds):
    assert not len(EnergyActivity().spans(np.zeros(round(seconds * RATE), np.float32)))
    assert not len(voice_pieces(np.zeros(round(seconds * RATE), np.float32), 1000))


def test_pieces_end_with_sentences_where_they_can():
    words = spans(*((i * 500, i * 500 + 450) for i in range(12)))
    ends = np.zeros(12, bool)
    ends[[3, 7, 11]] = True
    assert choose_pieces(words, ends, 2500) == [(0, 4), (4, 8), (8, 12)]
    # two sentences fit into one piece, and fewer pieces are better
    assert choose_pieces(words, ends, 4100) == [(0, 4), (4, 12)]


def test_pieces_end_at_pauses_without_punctuation():
    words = spans((0, 400), (420, 800), (1500, 1900), (1920, 2300))
    assert choose_pieces(words, np.zeros(4, bool), 1900) == [(0, 2), (2, 4)]


def test_every_word_is_in_one_piece_of_bounded_length():
    rng = np.random.default_rng(1)
    starts = np.cumsum(rng.integers(150, 900, 400))
    words = np.stack([starts, starts + rng.integers(50, 140, 400)], axis=1)
    pieces = choose_pieces(words, rng.random(400) < 0.1, 5000)
    assert [first for first, _ in pieces] == [0, *(last for _, last in pieces[:-1])]
    assert pieces[-1][1] == 400
    bounds = [piece_bounds(words, first, last, int(words[-1, 1]) + 70, 5000) for first, last in pieces]
    assert all(end - start <= 5000 for start, end in bounds)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(bounds))
    assert bounds[-1][1] <= words[-1, 1] + 70


def test_a_word_longer_than_a_piece_is_a_piece():
    assert choose_pieces(spans((0, 100), (150, 9000), (9100, 9200)), np.zeros(3, bool), 2000) == [
        (0, 1),
        (1, 2),
        (2, 3),
    ]


def test_voice_without_a_pause_is_cut_where_it_is_quiet():
    audio = np.concatenate([tone(1.5), tone(0.1, 0.02), tone(1.5)]).astype(np.float32)
    (first, second) = voice_pieces(audio, 2000).tolist()
    assert 1480 < first[1] < 1620
    assert first[1] <= second[0]
    long = voice_pieces(np.tile(audio, 20), 2000)
    assert (long[:, 1] - long[:, 0] <= 2000).all()
    assert (long[:, 1] - long[:, 0]).sum() > 60_000


def test_silero_knows_a_voice_from_a_loud_tone():
    pytest.importorskip("onnxruntime")
    if importlib.util.find_spec("silero_vad") is None:
        pytest.skip("silero-vad is not installed")
    clip = open_corpus("asterisk_prompts", "validation")[0].load()
    audio = np.concatenate([tone(2), clip, tone(2)]).astype(np.float32)
    (first, *_), (*_, last) = SileroActivity().spans(audio).T.tolist()
    assert 1900 < first < 2400
    assert abs(last - 2000 - clip.size / 16) < 600
    (first, *_), (*_, last) = EnergyActivity().spans(audio).T.tolist()
    assert first == 0  # takes all of it for voice
    assert last > 4000 + clip.size / 16 - 50
    assert open_voice_activity().name.startswith("silero-vad ")
    assert open_voice_activity("energy").name == "energy"
    for seconds in (0.0, 0.01):
        assert not len(SileroActivity().spans(np.zeros(round(seconds * RATE), np.float32)))


def test_energy_is_used_where_silero_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert open_voice_activity().name == "energy"
    with pytest.raises(VoiceActivityError, match=r"pip install 'spirit_jax\[vad\]'"):
        open_voice_activity("silero")
