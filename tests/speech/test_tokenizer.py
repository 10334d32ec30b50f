"""The tokenizer of released parts against the reference: units, strings, chunks of 100 s, stereo, errors."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest
import soundfile

from spirit_jax.audio import AudioError
from spirit_jax.checkpoint import CheckpointError
from spirit_jax.models.wav2vec2_heads import LinearQuantizer
from spirit_jax.speech import SpeechTokenizer
from spirit_jax.speech.released import batches
from spirit_jax.speech.released.phonetic import HubertEncoder
from spirit_jax.speech.released.pitch import VQVAEPitch
from spirit_jax.speech.released.style import Wav2Vec2Style
from spirit_jax.speech.storage import save_part
from spirit_jax.units import SpeechUnits
from tests.support import released
from tests.support.golden_clips import CLIPS, clip
from tests.support.goldens import golden, golden_json
from tests.support.released import HUBERT, STYLE, TINY_FCPE, VQVAE

pytestmark = pytest.mark.optimized


@pytest.fixture(autouse=True, scope="module")
def few_lengths():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "PADDED_LENGTHS", released.PADDED_LENGTHS)
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A converted checkpoint with the tiny FCPE."""
    directory = tmp_path_factory.mktemp("checkpoint")
    parts = {
        "phonetic": HubertEncoder.load(*released.hubert_part(golden(HUBERT))),
        "pitch": VQVAEPitch.load(*released.pitch_part(golden(VQVAE), golden(TINY_FCPE))),
        "style": Wav2Vec2Style.load(*released.style_part(golden(STYLE))),
    }
    for name, part in parts.items():
        save_part(directory / "speech_tokenizer" / name, part)
    return directory


@pytest.fixture(scope="module")
def tokenizer(directory):
    return SpeechTokenizer.from_pretrained(directory, "expressive")


NAMES = ("hubert", "pitch", "style")


def streams_of(units: SpeechUnits) -> dict[str, list[int]]:
    """The three streams of expressive units, by name."""
    assert units.pitch is not None
    assert units.style is not None
    return {name: stream.tolist() for name, stream in zip(NAMES, units.streams, strict=True) if stream is not None}


def integers(text: str) -> list[int]:
    """A stream as the golden files store it."""
    return [int(unit) for unit in text.split()]


def check_equal(units: SpeechUnits, case: dict):
    """Units equal those of a golden case, and so does their string."""
    assert streams_of(units) == {name: integers(case["units"][name]) for name in NAMES}
    assert units.to_string() == case["string"]


def test_units_and_strings_equal_the_reference(tokenizer):
    """Silence and noise are among the clips: this F0 network finds voiced frames in them."""
    cases = golden_json("speech_tokenizer_tinyfcpe.json")
    clips = [clip(name) for name in CLIPS]
    for name, units in zip(CLIPS, tokenizer.encode_batch(clips), strict=True):
        check_equal(units, cases[f"{name}.wav"]["ok"])
    assert tokenizer.encode(clips[1]) == tokenizer.encode_batch(clips)[1]


def test_units_of_speech_and_of_short_clips_equal_the_reference(tokenizer):
    cases = golden_json("speech_tokenizer_tinyfcpe.json")
    names = [name for name in cases if name.removesuffix(".wav") not in CLIPS and cases[name]["ok"]["string"]]
    clips = [clip(name) for name in names]
    quantizer = LinearQuantizer(32, 32).bind({"params": tokenizer.phonetic.arrays()["quantizer"]})
    for name, audio, units in zip(names, clips, tokenizer.encode_batch(clips), strict=True):
        # In one frame of libri_full the best two units tie to 1e-6. Frames with margins below 1e-3 are not compared.
        second, best = np.sort(quantizer(tokenizer.phonetic.features([audio])[0]), -1)[:, -2:].T
        unsure = best - second < 1e-3
        assert unsure.sum() <= 1
        expected = integers(cases[name]["ok"]["units"]["hubert"])
        check_equal(dataclasses.replace(units, hubert=np.where(unsure, expected, units.hubert)), cases[name]["ok"])
    with pytest.raises(AudioError, match="at least 1280"):  # the reference returns empty strings
        tokenizer.encode(clip("short_1279"))


@pytest.mark.parametrize("channel", [None, 0, 1])
def test_stereo_is_averaged_unless_a_channel_is_given(tokenizer, channel):
    cases = golden_json("speech_tokenizer.json")
    expected = cases[f"stereo_a.wav|channel_id={channel}"]["base"]["ok"]["units"]["hubert"]
    stereo, _ = soundfile.read(golden("audio/stereo_a.wav"), dtype="float32")
    assert " ".join(map(str, tokenizer.encode(stereo.T, channel).hubert)) == expected
    alone = stereo.mean(1) if channel is None else stereo[:, channel]
    assert " ".join(map(str, tokenizer.encode(alone).hubert)) == expected
    with pytest.raises(AudioError, match=r"1-D .* found shape \(25613, 2\)"):
        tokenizer.encode(stereo)
    for audio, wrong in ((stereo.T, 2), (stereo.T, -1), (alone, 0), (stereo, 0)):
        with pytest.raises(AudioError, match=f"channel_id {wrong}: "):
            tokenizer.encode(audio, wrong)


def test_a_stored_mean_f0_of_the_speaker_replaces_the_clips_own(tokenizer):
    audio = clip("tone_a")
    means = {"low": 700.0, "high": 900.0}  # below and above the F0 that this network finds
    pitch = VQVAEPitch.load({**tokenizer.pitch.config(), "speaker_f0_mean": means}, tokenizer.pitch.arrays())
    with_means = SpeechTokenizer(tokenizer.phonetic, pitch, tokenizer.style, None, "")
    found = {name: with_means.encode(audio, speaker=name) for name in (None, *means)}
    for name, mean in means.items():
        np.testing.assert_array_equal(found[name].pitch, pitch.encode(audio, f0_mean=mean))
        np.testing.assert_array_equal(found[name].hubert, found[None].hubert)
    assert found[None] == tokenizer.encode(audio)
    assert (found["low"].pitch != found["high"].pitch).any()
    with pytest.raises(ValueError, match="speaker 'x' is not known: .* of high, low"):
        with_means.encode(audio, speaker="x")
    with pytest.raises(ValueError, match="speaker 'low' is not known: .* of nobody"):
        tokenizer.encode(audio, speaker="low")


@pytest.mark.slow
def test_units_of_100_second_chunks_equal_the_reference(tokenizer):
    """Lengths around 100.08 s, from which the second chunk has units. F0 mean and windows start anew in each chunk."""
    cases = golden_json("long_chunking.json")["results"]
    audio = clip("libri_full.flac")
    long = np.tile(audio, 1_620_001 // len(audio) + 1)
    # This golden file was made with the real FCPE weights.
    real = VQVAEPitch.load(*released.pitch_part(golden(VQVAE), released.bundled_fcpe()))
    with_real_fcpe = SpeechTokenizer(tokenizer.phonetic, real, tokenizer.style, None, "")
    phonetic = SpeechTokenizer(tokenizer.phonetic, None, None, None, "")
    for n, case in cases.items():
        units = (with_real_fcpe if "pitch" in case else phonetic).encode(long[: int(n)])
        for name, stream in zip(NAMES, units.streams, strict=True):
            if name in case:
                assert stream is not None
                assert stream.tolist() == integers(case[name]), (n, name)
        if "hubert_count" in case:
            assert len(units.hubert) == case["hubert_count"]
            assert " ".join(map(str, units.hubert[-30:])) == case["hubert_last30"]


def test_a_last_chunk_too_short_for_units_is_left_out(tokenizer):
    """99.99 s, 100 s and 100.01 s: a last chunk of 160 samples has no units, so the last two are equal."""
    audio = clip("noise_a")
    long = np.tile(audio, 1_600_160 // len(audio) + 1)
    phonetic = SpeechTokenizer(tokenizer.phonetic, None, None, None, "")
    short, exact, over = (phonetic.encode(long[:n]) for n in (1_599_840, 1_600_000, 1_600_160))
    assert (len(short.hubert), len(exact.hubert)) == (2499, 2499)
    assert exact == over


def test_units_do_not_depend_on_padding(tokenizer, monkeypatch):
    """A clip of less than 3.25 s gives the same units when it is padded to 3.25 s and to 10 s."""
    audio = clip("tone_a")
    expected = tokenizer.encode(audio)
    assert len(audio) < 52_000
    monkeypatch.setattr(batches, "PADDED_LENGTHS", (160_000, batches.MAX_SAMPLES))
    assert tokenizer.encode(audio) == expected


def test_base_has_phonetic_units_only(directory):
    audio = clip("noise_a")
    units = SpeechTokenizer.from_pretrained(directory, "base").encode(audio)
    assert units.pitch is None
    assert units.to_string() == golden_json("speech_tokenizer.json")["noise_a.wav"]["base"]["ok"]["string"]


def test_the_f0_extractor_is_part_of_the_fingerprint(directory, tokenizer):
    pytest.importorskip("amfm_decompy")
    other = SpeechTokenizer.from_pretrained(directory, f0="pyaapt")
    assert isinstance(other.pitch, VQVAEPitch)
    assert other.pitch.f0 == "pyaapt"
    assert other.fingerprint != tokenizer.fingerprint
    assert SpeechTokenizer.from_pretrained(directory).fingerprint == tokenizer.fingerprint


def test_unusable_audio_and_checkpoints_are_refused(directory, tokenizer, tmp_path):
    with pytest.raises(AudioError, match="floating point in .* found int16"):
        tokenizer.encode(np.zeros(16_000, np.int16))
    with pytest.raises(AudioError, match="not finite"):
        tokenizer.encode(np.full(16_000, np.nan, np.float32))
    with pytest.raises(CheckpointError, match="no speech_tokenizer/phonetic there"):
        SpeechTokenizer.from_pretrained(tmp_path, "expressive").load_encoders()
    with pytest.raises(CheckpointError, match="no vocoder"):
        tokenizer.decode("[St1][Pi1][Hu1]")
    with pytest.raises(ValueError, match="f0 must be one of"):
        SpeechTokenizer.from_pretrained(directory, f0="crepe")  # pyright: ignore[reportArgumentType]


def test_units_of_the_released_weights_equal_the_published_ones():
    """One LibriSpeech clip, where the released weights are at hand."""
    if "SPIRITLM_CHECKPOINTS_DIR" not in os.environ:
        pytest.skip("released weights not at hand: set SPIRITLM_CHECKPOINTS_DIR to their folder")
    folder = pathlib.Path(os.environ["SPIRITLM_CHECKPOINTS_DIR"]) / "speech_tokenizer"
    encoder = HubertEncoder.load(*released.hubert_part(folder / "hubert_25hz"))
    pitch = VQVAEPitch.load(*released.pitch_part(folder / "vqvae_f0_quantizer", released.bundled_fcpe()))
    style = Wav2Vec2Style.load(*released.style_part(folder / "style_encoder_w2v2"))
    published = json.loads(golden("published_units.json").read_text())["units"]
    audio = clip("libri_full.flac")
    for name, part in (("hubert", encoder), ("pitch", pitch), ("style", style)):
        if name in published:
            assert " ".join(map(str, part.encode(audio))) == published[name], name
