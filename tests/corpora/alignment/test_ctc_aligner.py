"""Alignment with CTC networks: symbols of transcripts, words out of frames, and clips that cannot be aligned."""

import numpy as np
import pytest

from spirit_jax.corpora.alignment.aligner import AlignmentError
from spirit_jax.corpora.alignment.alphabet import Alphabet
from spirit_jax.corpora.alignment.ctc_aligner import CTCAligner, FrameGrid
from spirit_jax.corpora.alignment.padding import padded_batches, padded_size
from spirit_jax.corpora.alignment.spelling import spell

NOISE = np.full(16_000, 0.1, np.float32)


class Said:
    """A network that hears a text with a symbol for each frame of 20 ms, "." for the blank."""

    name = "said"
    alphabet = Alphabet(("", *"abcdefghijklmnopqrstuvwxyz"))
    grid = FrameGrid(hop_ms=20, offset_ms=0)
    blanks_in_words = True
    bias_v = np.zeros(27, np.float32)

    def __init__(self, *texts, confidence=0.9):
        self.texts, self.confidence = list(texts), confidence

    def log_probs(self, clips):
        emissions = []
        for text in self.texts[: len(clips)]:
            probabilities = np.full((len(text), 27), (1 - self.confidence) / 26, np.float32)
            for frame, character in enumerate(text):
                probabilities[frame, max(0, ord(character) - 96)] = self.confidence
            emissions.append(np.log(probabilities))
        return emissions


def times(network, *transcripts):
    return CTCAligner(network).align([NOISE] * len(transcripts), [spell(text) for text in transcripts])


def edges(found):
    return [(time.start_ms, time.end_ms) for time in found]


def test_words_have_the_times_of_their_characters_and_share_short_gaps():
    (found,) = times(Said("..c.a.t..d.oo..g....."), "Cat, dog!")
    assert edges(found) == [(40, 160), (160, 320)]
    assert [time.score for time in found] == pytest.approx([1.0, 1.0])


def test_a_pause_is_not_shared():
    (found,) = times(Said("cat" + "." * 20 + "dog"), "cat dog")
    assert edges(found) == [(0, 120), (400, 520)]


def test_clips_of_a_batch_align_as_they_do_alone():
    texts, transcripts = ["..cat..", "d.o.g" * 9, "a" * 300], ["cat", " ".join(["dog"] * 9), "a"]
    together = times(Said(*texts), *transcripts)
    for text, transcript, found in zip(texts, transcripts, together, strict=True):
        assert times(Said(text), transcript)[0] == found


def test_words_without_symbols_take_their_audio_and_leave_their_neighbors_alone():
    (found,) = times(Said("ccattxyzxyzddog"), "cat 日本 — dog")
    assert edges(found) == [(0, 100), (100, 160), (160, 220), (220, 300)]
    assert [time.interpolated for time in found] == [False, True, True, False]


def test_a_wrong_transcript_scores_lower():
    network = Said("..cat...dog..")
    (right,), (wrong,) = times(network, "cat dog"), times(network, "bird fish")
    assert min(time.score for time in right) > 10 * max(time.score for time in wrong)


def test_clips_that_cannot_be_aligned_say_why_and_do_not_disturb_others():
    aligner, audio = CTCAligner(Said("cat", "dog.")), NOISE
    transcripts = ["cats and dogs", "日本", "cat", "dog", "cat"]
    clips = [audio, audio, np.zeros(16_000, np.float32), audio, np.zeros(0, np.float32)]
    results = aligner.align(clips, [spell(text) for text in transcripts])
    messages = [str(result) if isinstance(result, AlignmentError) else "" for result in results]
    assert "3 frames of 20 ms are too few for the 11 characters" in messages[0]
    assert "no character that the aligner knows; it knows abc" in messages[1]
    assert messages[2:] == ["the clip is silent", "", "the clip is empty"]


def test_an_alphabet_of_capitals_without_accents_spells_both():
    alphabet = Alphabet(("<pad>", "|", "E", "C", "A", "F", "'"), blank=0, separator=1)
    labels = alphabet.label(spell("Café ca'e"))
    assert labels.symbols == [3, 4, 5, 2, 1, 3, 4, 6, 2]
    assert labels.words[:6] == [0, 0, 0, 0, -1, 1]
    assert labels.pauses[:6] == [True, False, False, False, True, True]


def test_any_script_is_spelled_by_its_own_characters():
    for text in ("мир", "日本語", "مرحبا", "한국어", "नमस्ते"):
        alphabet = Alphabet(("", *sorted(set(text))))
        assert [alphabet.symbols[s] for s in alphabet.label(spell(text)).symbols] == list(text)


def test_padding_is_at_most_a_quarter_and_batches_keep_to_their_budget():
    assert all(size <= padded_size(size) <= size * 1.25 for size in range(64, 5000))
    sizes = np.random.default_rng(0).integers(1, 3000, 200).tolist()
    seen = []
    for batch, size, rows in padded_batches(sizes, 8192):
        assert all(sizes[i] <= size for i in batch)
        assert len(batch) <= rows
        assert rows == 1 or rows * size <= 8192
        seen += batch
    assert sorted(seen) == list(range(200))
