"""The bundled corpora: their content, and that the scripts which made them still make the same."""

import itertools
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from spirit_jax.corpora import BUNDLED, open_corpus
from spirit_jax.corpora.alignment.spelling import spell

RATE = 16_000
TOOLS = pathlib.Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def speech():
    return {split: list(open_corpus("spirit_mini", split)) for split in ("train", "validation")}


@pytest.fixture(scope="module")
def stories():
    return {split: list(open_corpus("spirit_mini_text", split)) for split in ("train", "validation")}


@pytest.fixture(scope="module")
def decoded(speech):
    """Every seventh utterance with its audio, all speakers among them."""
    return [(utterance, utterance.load()) for utterance in itertools.islice(speech["train"], 0, None, 7)]


def level(audio):
    return 20 * np.log10(np.sqrt(np.mean(np.square(audio, dtype=np.float64))) + 1e-8)


def plain(text):
    return re.sub(r"[^a-z' ]", "", text.lower()).split()


def test_reading_needs_neither_tensorflow_nor_jax():
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        "from spirit_jax import corpora\n"
        "names = ('spirit_mini', 'spirit_mini_text')\n"
        "assert all(corpora.open_corpus(name, split)[-1].text for name in names for split in ('train', 'validation'))\n"
        "source = tfds.data_source('spirit_mini', split='train', data_dir=corpora.BUNDLED)\n"
        "assert len(source) == len(corpora.open_corpus('spirit_mini', 'train')) and source[0]['audio'][:4] == b'OggS'\n"
        "found = {'tensorflow', 'jax', 'torch'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).parents[2])


def test_speech_is_complete_and_varied(speech):
    train, validation = speech["train"], speech["validation"]
    assert (len(train), len(validation)) == (480, 64)
    everything = train + validation
    assert len({utterance.id for utterance in everything}) == len(everything)
    for utterance in everything:
        assert utterance.text == " ".join(utterance.words), utterance.id
        spans = utterance.spans_ms
        assert spans.shape == (len(utterance.words), 2), utterance.id
        assert (spans[:, 1] > spans[:, 0]).all(), utterance.id
        assert (spans[1:, 0] >= spans[:-1, 1]).all(), utterance.id
        assert 1500 < spans[-1, 1] < 6500, utterance.id
    assert len({utterance.speaker for utterance in train}) == 16
    assert {utterance.speaker for utterance in validation} == {utterance.speaker for utterance in train}
    assert (
        sum(len(utterance.words) >= 12 for utterance in train) >= 200
    )  # long enough for the span lengths of the paper
    assert len({word for utterance in train for word in plain(utterance.text)}) >= 700


def test_validation_sentences_are_new_but_their_words_are_not(speech, stories):
    seen = {utterance.text for utterance in speech["train"]}
    held_out = [utterance.text for utterance in speech["validation"]]
    assert not seen & set(held_out)
    documents = "\n".join(story.text for split in stories.values() for story in split)
    assert not [sentence for sentence in held_out if sentence in documents]
    known = set(plain(documents)) | {word for text in seen for word in plain(text)}
    words = [word for text in held_out for word in plain(text)]
    assert np.mean([word in known for word in words]) > 0.97


def test_text_corpus_has_its_documents(stories):
    assert (len(stories["train"]), len(stories["validation"])) == (3000, 100)
    for story in stories["train"] + stories["validation"]:
        assert story.audio is None
        assert story.words == ()
        assert len(story.text.split()) > 12, story.id
    assert not {story.text for story in stories["train"]} & {story.text for story in stories["validation"]}
    assert 5e5 < sum(len(story.text) for story in stories["train"]) < 1.5e6


def test_word_times_fit_the_decoded_audio(decoded):
    before, words, pauses, onset, offset = [], [], [], [], []
    for utterance, audio in decoded:
        spans = utterance.spans_ms * RATE // 1000
        assert spans[-1, 1] < audio.size
        before.append(level(audio[: spans[0, 0]]))
        words += [level(audio[start:end]) for start, end in spans]
        gaps = zip(spans[:-1, 1], spans[1:, 0], strict=True)
        pauses += [level(audio[end + 160 : start - 160]) for end, start in gaps if start - end > RATE // 10]
        loud = np.flatnonzero(np.abs(audio) > 0.02)
        onset.append((loud[0] - spans[0, 0]) * 1000 / RATE)
        offset.append((loud[-1] - spans[-1, 1]) * 1000 / RATE)
    # Voices are 40 dB and more above the noise floor of the recordings.
    assert np.median(words) - max(before) > 35
    assert len(pauses) > 10
    assert np.median(words) - np.median(pauses) > 35
    # After coding and decoding, speech starts and ends at the synthesizer's times; a stop may close 70 ms earlier.
    assert np.min(onset) > -5
    assert abs(np.median(onset)) < 20
    assert np.max(offset) < 10
    assert abs(np.median(offset)) < 20


def test_script_makes_the_same_text_again(stories, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import mini_corpus_text

    held_out = {utterance.text for utterance in open_corpus("spirit_mini", "validation")}
    assert mini_corpus_text.stories(3000, 6, held_out) == [story.text for story in stories["train"]]


def test_script_makes_the_same_word_times_again(speech, monkeypatch):
    pytest.importorskip("espeakng_loader", reason="the synthesizer is in the extra `corpus`")
    monkeypatch.syspath_prepend(str(TOOLS))
    import make_mini_corpus

    utterances = make_mini_corpus.speech("train", [utterance.text for utterance in speech["train"]], 4)
    for made, stored in zip(itertools.islice(utterances, 8), speech["train"], strict=False):
        assert (made.id, made.words, made.speaker) == (stored.id, stored.words, stored.speaker)
        np.testing.assert_array_equal(made.spans_ms, stored.spans_ms)


@pytest.fixture(scope="module")
def prompts():
    return {split: list(open_corpus("asterisk_prompts", split)) for split in ("train", "validation")}


def test_human_voice_has_words_with_times_in_its_audio(prompts):
    everything = prompts["train"] + prompts["validation"]
    assert len({utterance.id for utterance in everything}) == len(everything) > 450
    assert {utterance.speaker for utterance in everything} == {"allison_smith"}
    for utterance in everything:
        assert utterance.text == " ".join(utterance.words), utterance.id
        assert utterance.audio[:4] == b"OggS", utterance.id
        assert (utterance.spans_ms[:, 1] > utterance.spans_ms[:, 0]).all(), utterance.id
    louder = []
    for utterance in everything[::12]:
        audio = utterance.load()  # checks that the words are in order and inside the audio
        spoken = np.zeros(audio.size, bool)
        for start, end in utterance.spans_ms * RATE // 1000:
            spoken[start:end] = True
        louder.append(level(audio[spoken]) - level(audio[~spoken]) if (~spoken).any() else np.nan)
    assert np.nanmedian(louder) > 15


def test_human_validation_prompts_are_new(prompts):
    def spoken(utterance):
        return " ".join(word for each in spell(utterance.text) for word in each.spoken)

    seen = {spoken(utterance) for utterance in prompts["train"]}
    held_out = [spoken(utterance) for utterance in prompts["validation"]]
    assert not seen & set(held_out)
    assert 25 <= len(held_out) <= 90
    assert sum(len(text.split()) >= 4 for text in held_out) >= 10


def test_human_recordings_carry_their_license_and_attribution():
    directory = BUNDLED / "asterisk_prompts"
    assert "Attribution-ShareAlike" in (directory / "NOTICE.md").read_text()
    assert "Allison Smith" in (directory / "NOTICE.md").read_text()
    assert "creativecommons.org" in (directory / "LICENSE").read_text()


@pytest.mark.parametrize(
    ("published", "text"),
    [
        ("... for ...", "for"),
        ("at [@]", "at"),
        ("press * to toggle pause,  press # to exit", "press star to toggle pause, press pound to exit"),
        ('IAX (note: does not say "2")', "IAX"),
        ("[ascending tones]", ""),
    ],
)
def test_script_takes_remarks_out_of_published_transcripts(published, text, monkeypatch):
    pytest.importorskip("av", reason="decodes the recordings; in the extra `corpus`")
    monkeypatch.syspath_prepend(str(TOOLS))
    import make_human_corpus

    assert make_human_corpus.spoken_text(published) == text
