"""Griffin-Lim: decoded units sound like the speech that they encode."""

import dataclasses
import logging

import numpy as np
import pytest

from spirit_jax.speech.f0 import f0
from spirit_jax.speech.features import log_mel
from spirit_jax.speech.protocols import VoiceError
from spirit_jax.speech.scratch import griffin_lim
from spirit_jax.units import SpeechUnits, UnitError


def distance(one, other):
    """Mean absolute log-mel difference in dB over the sounding frames of `one`."""
    one, other = (np.maximum(log_mel(audio), -7) for audio in (one, other))
    frames = min(len(one), len(other))
    one, other = one[:frames], other[:frames]
    loud = one.mean(axis=1) > one.mean(axis=1).max() - 3.45
    return 20 / np.log(10) * np.abs(one - other)[loud].mean()


def test_decoded_units_sound_like_the_original(scratch_tokenizer, heard):
    distances, chance, correlations, agreement = [], [], [], []
    for utterance, audio, units in heard:
        rebuilt = scratch_tokenizer.decode(units, speaker=utterance.speaker)
        assert rebuilt.dtype == np.float32
        assert rebuilt.size == 640 * len(units.hubert)
        assert 0.05 < np.abs(rebuilt).max() <= 1
        distances.append(distance(audio, rebuilt))
        chance.append(distance(audio, np.roll(rebuilt, rebuilt.size // 2)))
        frames = rebuilt.size // 320
        (pitch, voiced), (pitch2, voiced2) = f0(audio[: rebuilt.size], frames), f0(rebuilt, frames)
        both = voiced & voiced2
        assert np.mean(voiced != voiced2) < 0.25
        correlations.append(np.corrcoef(np.log(pitch[both]), np.log(pitch2[both]))[0, 1])
        again = scratch_tokenizer.encode(rebuilt).hubert
        agreement.append(np.mean(again == units.hubert[: len(again)]))
    # Measured: 5.5 dB, and 13.7 dB to another time of the same voice; F0 correlation 0.96; 0.9 of the units are equal.
    assert np.mean(distances) < 0.5 * np.mean(chance)
    assert np.mean(correlations) > 0.85
    assert np.mean(agreement) > 0.75


def test_units_of_a_string_get_their_durations_back(scratch_tokenizer, heard):
    ratios = [scratch_tokenizer.decode(units.to_string()).size / (640 * len(units.hubert)) for _, _, units in heard]
    assert abs(np.mean(ratios) - 1) < 0.05
    assert max(ratios) < 1.25
    assert min(ratios) > 0.8


def test_predicted_duration_of_a_unit_is_its_mean_run_length(scratch_tokenizer, heard):
    vocoder = scratch_tokenizer.vocoder
    unit = int(np.argmax(vocoder.duration))
    single = SpeechUnits(np.array([unit, unit, unit]))
    assert scratch_tokenizer.decode(single).size == 640 * round(float(vocoder.duration[unit]))  # a run collapses
    assert scratch_tokenizer.decode(single, predict_durations=False).size == 640 * 3


def test_pitch_units_and_speakers_set_the_pitch_of_the_audio(scratch_tokenizer):
    voiced = int(np.argmax(scratch_tokenizer.vocoder.voicing.sum(axis=0)))

    def pitch(unit, speaker):
        units = SpeechUnits(np.full(25, voiced), np.full(12, unit))
        values, sounding = f0(scratch_tokenizer.decode(units, speaker=speaker), 48)
        return np.median(values[sounding])

    low, high = pitch(4, "us_m1"), pitch(28, "us_m1")
    octaves = scratch_tokenizer.vocoder.octaves
    assert abs(np.log2(high / low) - (octaves[28] - octaves[4])) < 0.03
    assert pitch(4, "us_f4") > 1.5 * low
    assert pitch(4, scratch_tokenizer.vocoder.speakers.index("us_m1")) == low


def test_decoding_is_deterministic_and_quiet_in_pauses(scratch_tokenizer, heard):
    utterance, _, units = heard[0]
    sound = scratch_tokenizer.decode(units, speaker=utterance.speaker)
    np.testing.assert_array_equal(sound, scratch_tokenizer.decode(units, speaker=utterance.speaker))
    start, end = utterance.spans_ms[0, 0] * 16, utterance.spans_ms[-1, 1] * 16

    def level(samples):
        return 20 * np.log10(np.sqrt(np.mean(samples**2)))

    assert level(sound[: start - 640]) < level(sound[start:end]) - 30


def test_unknown_units_are_tolerated_and_unknown_speakers_refused(scratch_tokenizer, caplog):
    known, mixed = SpeechUnits(np.array([3, 4, 5])), SpeechUnits(np.array([3, 400, 4, 5]))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(scratch_tokenizer.decode(mixed), scratch_tokenizer.decode(known))
    assert "1 of 4 phonetic units are unknown" in caplog.text
    with pytest.raises(UnitError, match=r"none of 2 phonetic units is known to this vocoder; it has 0\.\.79"):
        scratch_tokenizer.decode("[Hu400][Hu500]")
    with pytest.raises(UnitError):
        scratch_tokenizer.decode("")
    assert np.isfinite(scratch_tokenizer.decode("[St99][Pi63][Hu3][Hu4]")).all()
    for speaker in (16, -1, "nobody"):
        with pytest.raises(ValueError, match=r"speaker .* this vocoder has 0\.\.15"):
            scratch_tokenizer.decode(known, speaker=speaker)


def test_the_default_speaker_exists_in_a_corpus_with_few_speakers(scratch_tokenizer):
    """Speaker 2, the default of every command, is the last voice of corpora with one or two voices."""
    whole = scratch_tokenizer.vocoder
    one = dataclasses.replace(whole, level=whole.level[:1], log2_f0=whole.log2_f0[:1], speakers=whole.speakers[:1])
    units = SpeechUnits(np.array([3, 9, 9, 4, 7]))
    np.testing.assert_array_equal(one.decode(units), whole.decode(units, speaker=0))
    with pytest.raises(ValueError, match=r"speaker 1: this vocoder has 0\.\.0"):
        one.decode(units, speaker=1)


def test_istft_inverts_stft():
    audio = np.random.default_rng(0).normal(size=640 * 7).astype(np.float32)
    np.testing.assert_allclose(griffin_lim.istft(griffin_lim.stft(audio), audio.size), audio, atol=1e-5)


def test_source_is_flat_and_of_unit_power():
    for voicing in (0.0, 1.0):
        source = griffin_lim.voice_source(np.full(50, np.log2(97.0)), np.full(50, voicing))
        assert abs(np.mean(source.astype(np.float64) ** 2) - 1) < 0.05
        bands = np.abs(np.fft.rfft(source)) ** 2
        quarters = [part.sum() for part in np.array_split(bands, 4)]
        assert max(quarters) < 1.1 * min(quarters)


def test_a_stream_yields_the_audio_of_decode_in_one_chunk(scratch_tokenizer, heard):
    vocoder = scratch_tokenizer.vocoder
    whole = SpeechUnits.from_string(heard[0][2].to_string())
    assert whole.pitch is not None
    assert whole.style is not None
    pieces = [
        SpeechUnits(whole.hubert[start : start + 5], whole.pitch[start : start + 5], whole.style[start : start + 5])
        for start in range(0, len(whole.hubert), 5)
    ]
    (audio,) = vocoder.stream(iter(pieces), speaker=1)
    np.testing.assert_array_equal(audio, vocoder.decode(whole, speaker=1))
    without_pitch = [SpeechUnits(piece.hubert) for piece in pieces]
    (audio,) = vocoder.stream([pieces[0], *without_pitch[1:]])
    np.testing.assert_array_equal(audio, vocoder.decode(SpeechUnits(whole.hubert)))
    assert vocoder.latency() is None
    with pytest.raises(UnitError, match="no phonetic units"):
        list(vocoder.stream([]))


def test_a_named_style_is_refused(scratch_tokenizer):
    with pytest.raises(VoiceError, match=r"style 'happy': .* only units 0\.\.9"):
        scratch_tokenizer.decode("[Hu3]", style="happy")
