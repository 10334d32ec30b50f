"""Training from scratch, and the units of the tokenizer that it gives."""

import dataclasses
import difflib
import doctest
import itertools
import logging
import pathlib

import numpy as np
import pytest

from spirit_jax.audio import AudioError, save_audio
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.speech import SpeechTokenizer, SpeechTokenizerConfig, tokenizer, train_speech_tokenizer
from spirit_jax.speech.loading import (
    load_phonetic_encoder,
    load_pitch_encoder,
    load_style_encoder,
    load_vocoder,
)
from spirit_jax.speech.protocols import VoiceError
from spirit_jax.speech.scratch.trainer import TrainedEncoders, complete_speech_tokenizer
from spirit_jax.units import SpeechUnits
from tests.support.sounds import buzz


def files_of(directory: pathlib.Path) -> dict[pathlib.Path, bytes]:
    """The content of every file below a directory."""
    return {path.relative_to(directory): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "samples", [1280, 1281, 1359, 1360, 1361, 1999, 2000, 2080, 15_999, 16_000, 16_399, 16_400, 16_720, 33_123]
)
def test_each_stream_has_its_number_of_units(scratch_tokenizer, samples):
    audio = np.random.default_rng(samples).normal(0, 0.05, samples).astype(np.float32)
    units = scratch_tokenizer.encode(audio)
    # Counted: windows of 720 samples every 640, groups of 16 steps of 80 samples, groups of up to 50 windows of 400.
    assert len(units.hubert) == sum(1 for start in range(0, samples, 640) if start + 720 <= samples)
    assert len(units.pitch) == len(range(0, samples + 1, 80)) // 16
    frames50 = sum(1 for start in range(0, samples, 320) if start + 400 <= samples)
    assert len(units.style) == len(range(0, frames50, 50))
    assert all(stream.dtype == np.int32 for stream in units.streams)


def test_audio_beyond_100_seconds_is_encoded_in_chunks(scratch_tokenizer):
    audio = np.random.default_rng(0).normal(0, 0.05, 1_600_000 + 1280).astype(np.float32)
    whole, rest = scratch_tokenizer.encode(audio[:1_600_000]), scratch_tokenizer.encode(audio[1_600_000:])
    assert [len(stream) for stream in whole.streams] == [2499, 1250, 100]
    assert [len(stream) for stream in rest.streams] == [1, 1, 1]
    assert scratch_tokenizer.encode(audio) == SpeechUnits(
        *map(np.concatenate, zip(whole.streams, rest.streams, strict=True))
    )
    assert scratch_tokenizer.encode(audio[:-1]) == whole  # a last chunk of 1279 samples has no units


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(1279, np.float32), "1279 samples are too short for units: at least 1280"),
        (np.zeros(0, np.float32), "at least 1280"),
        (np.zeros((3, 2000), np.float32), "must be 1-D"),
        (np.full(2000, np.nan, np.float32), "not finite"),
    ],
)
def test_audio_without_units_is_refused(scratch_tokenizer, audio, message):
    with pytest.raises(AudioError, match=message):
        scratch_tokenizer.encode(audio)


def test_pitch_units_are_unvoiced_in_silence_and_noise_and_follow_a_buzz(scratch_tokenizer):
    assert not scratch_tokenizer.encode(np.zeros(SAMPLE_RATE, np.float32)).pitch.any()
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
    assert (scratch_tokenizer.encode(noise).pitch == 0).mean() > 0.9
    steady = scratch_tokenizer.encode(buzz(150.0)).pitch
    assert len(set(steady.tolist())) == 1
    assert steady[0] > 0
    rising = scratch_tokenizer.encode(buzz(np.geomspace(120, 200, SAMPLE_RATE))).pitch
    assert (np.diff(rising) >= 0).all()
    assert rising[0] < steady[0] < rising[-1]


def test_a_speaker_without_a_stored_mean_f0_is_refused(scratch_tokenizer, scratch_checkpoint):
    audio = buzz(150.0)
    with pytest.raises(VoiceError, match="speaker 'us_m1': this pitch encoder stores no speaker's mean F0"):
        scratch_tokenizer.encode(audio, speaker="us_m1")
    with pytest.raises(VoiceError, match="speaker 'us_m1': this tokenizer has no pitch encoder"):
        SpeechTokenizer.from_pretrained(scratch_checkpoint, "base").encode(audio, speaker="us_m1")


def test_silence_has_the_unit_of_pauses_and_is_decoded_as_silence(scratch_tokenizer, heard):
    (unit,) = set(scratch_tokenizer.encode(np.zeros(SAMPLE_RATE, np.float32)).hubert.tolist())
    pauses = [unit for _, _, units in heard for unit in units.hubert[:2]]  # no clip has speech in its first 60 ms
    assert pauses.count(unit) >= len(pauses) / 3
    speech, silence = (
        np.std(scratch_tokenizer.decode(units)) for units in (heard[0][2], SpeechUnits(np.full(25, unit)))
    )
    assert silence < 0.01 * speech


def test_pitch_units_do_not_depend_on_the_voice(scratch_tokenizer):
    contour = np.geomspace(1.0, 1.4, SAMPLE_RATE)
    low, high = (scratch_tokenizer.encode(buzz(mean * contour)).pitch for mean in (100, 200))
    assert np.abs(low - high).max() <= 1


def test_phonetic_units_do_not_depend_on_the_level(scratch_tokenizer, heard):
    for _, audio, units in heard[:4]:
        assert (
            np.mean(scratch_tokenizer.encode(0.3 * audio).hubert == units.hubert) > 0.95
        )  # the floor of the spectrum stays


def test_units_are_equal_in_batches_and_survive_their_string_form(scratch_tokenizer, scratch_checkpoint, heard):
    assert scratch_tokenizer.encode_batch([audio for _, audio, _ in heard[:3]]) == [units for _, _, units in heard[:3]]
    base = SpeechTokenizer.from_pretrained(scratch_checkpoint, "base")
    for _, audio, units in heard[:3]:
        string = units.to_string()
        aligned = SpeechUnits.from_string(string)
        assert aligned.pitch is not None
        np.testing.assert_array_equal(aligned.hubert, [unit for unit, _ in itertools.groupby(units.hubert)])
        assert set(aligned.pitch) <= set(units.pitch)
        assert base.encode(audio) == units.without_expression()


def test_the_example_in_the_docstring_runs(scratch_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").symlink_to(scratch_checkpoint)
    save_audio("two_seconds.wav", buzz(150.0, 2.0))
    results = doctest.testmod(tokenizer)
    assert results.attempted > 5
    assert results.failed == 0


def test_units_of_a_word_resemble_each_other(corpus, scratch_tokenizer):
    """One word in one voice, at other speeds and pitches, has more similar units than two words in that voice."""
    words = {}
    for utterance in (
        corpus[index] for index in range(len(corpus)) if index % 16 in (3, 9)
    ):  # two speakers, 30 utterances each
        hubert = scratch_tokenizer.encode(utterance.load()).hubert
        for word, (start, end) in zip(utterance.words, utterance.spans_ms, strict=True):
            if end - start >= 240:  # six frames or more
                units = hubert[round(start / 40) : round(end / 40)].tolist()
                words.setdefault(utterance.speaker, []).append((word.strip(".,?").lower(), units))
    same, other = [], []
    for spoken in words.values():
        for (word, units), (word2, units2) in itertools.combinations(spoken, 2):
            ratio = difflib.SequenceMatcher(None, units, units2, autojunk=False).ratio()
            (same if word == word2 else other).append(ratio)
    assert len(same) > 30
    assert np.mean(same) > 3 * np.mean(other)


def test_training_is_deterministic(corpus, tmp_path):
    config = SpeechTokenizerConfig(phonetic_units=20, pitch_units=8, style_units=3)
    some = [corpus[index] for index in range(24)]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_speech_tokenizer(some, config, tmp_path / name, seed, progress=False)
    first, again, other = (files_of(tmp_path / name) for name in "abc")
    assert first == again
    assert first != other
    assert {str(path.parent) for path in first} == {
        f"speech_tokenizer/{part}" for part in ("phonetic", "pitch", "style", "vocoder_base", "vocoder_expressive")
    }
    fingerprints = [SpeechTokenizer.from_pretrained(tmp_path / name).fingerprint for name in "abc"]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_the_vocoder_speaks_the_units_of_trained_encoders(corpus, scratch_checkpoint, tmp_path):
    """Numbers of units and their pitch come from the encoders, not from the config."""
    trained = TrainedEncoders(*(load(scratch_checkpoint) for load in (load_phonetic_encoder, load_pitch_encoder)))
    config = SpeechTokenizerConfig(pitch_units=5, style_units=3)
    some = [corpus[index] for index in range(12)]
    names = complete_speech_tokenizer(some, config, tmp_path / "a", trained, progress=False)
    assert names == ["style", "vocoder_base", "vocoder_expressive"]
    known = SpeechTokenizer.from_pretrained(scratch_checkpoint).vocoder
    vocoder = load_vocoder(tmp_path / "a", "expressive")
    assert vocoder.spectrum.shape == known.spectrum.shape
    seen = np.isfinite(vocoder.octaves)
    assert seen.sum() > 10
    np.testing.assert_allclose(vocoder.octaves[seen], known.octaves[seen], atol=0.1)
    assert len(vocoder.gain) == 3
    trained = dataclasses.replace(trained, style=load_style_encoder(scratch_checkpoint))
    assert "style" not in complete_speech_tokenizer(some[:4], config, tmp_path / "b", trained, progress=False)


def test_bad_utterances_are_left_out_and_named(corpus, tmp_path, caplog):
    good = [corpus[index] for index in range(8)]
    bad = [
        dataclasses.replace(good[0], id="broken", audio=b"nothing"),
        dataclasses.replace(good[1], id="mute", text=""),
    ]
    config = SpeechTokenizerConfig(phonetic_units=10, pitch_units=4, style_units=2)
    with caplog.at_level(logging.WARNING):
        train_speech_tokenizer([*good, *bad], config, tmp_path, 0, progress=False)
    assert len(caplog.records) == 2
    assert "'broken'" in caplog.text
    assert "'mute'" in caplog.text
    with pytest.raises(ValueError, match="none of 2 utterances"):
        train_speech_tokenizer(bad, config, tmp_path / "none", 0, progress=False)
    with pytest.raises(ValueError, match="500 clusters need at least as many frames"):
        train_speech_tokenizer(
            good[:1], SpeechTokenizerConfig(phonetic_units=500), tmp_path / "none", 0, progress=False
        )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("field", [{"phonetic_units": 501}, {"pitch_units": 2}, {"style_units": 0}, {"max_hours": 0.0}])
def test_config_refuses_numbers_out_of_range(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        SpeechTokenizerConfig(**field)
