"""Pitch units against the reference: FCPE or pYAAPT, normalization and VQ-VAE."""

import sys

import numpy as np
import pytest

from spirit_jax.audio import AudioError
from spirit_jax.speech.released import batches
from spirit_jax.speech.released.pitch import VQVAEPitch, pyaapt
from tests.support import released
from tests.support.golden_clips import CLIPS
from tests.support.golden_clips import clip as audio
from tests.support.goldens import golden, golden_arrays, golden_json
from tests.support.released import TINY_FCPE, VQVAE

pytestmark = pytest.mark.optimized


@pytest.fixture(scope="module")
def tiny():
    return VQVAEPitch.load(*released.pitch_part(golden(VQVAE), golden(TINY_FCPE)))


@pytest.fixture(autouse=True)
def few_lengths(monkeypatch):
    monkeypatch.setattr(batches, "PADDED_LENGTHS", released.PADDED_LENGTHS)


@pytest.mark.accelerator
def test_units_equal_the_reference(tiny):
    cases = golden_json("speech_tokenizer_tinyfcpe.json")
    for clip, units in zip(CLIPS, tiny.encode_batch([audio(clip) for clip in CLIPS]), strict=True):
        assert units.dtype == np.int32
        assert " ".join(map(str, units)) == cases[f"{clip}.wav"]["ok"]["units"]["pitch"], clip


def test_units_with_the_real_f0_weights_equal_the_reference():
    """On clips without a voice the reference raises. They have one code every 80 ms, constant within the clip."""
    encoder = VQVAEPitch.load(*released.pitch_part(golden(VQVAE), released.bundled_fcpe()))
    cases = golden_json("speech_tokenizer.json")
    for clip, units in zip(CLIPS, encoder.encode_batch([audio(clip) for clip in CLIPS]), strict=True):
        case = cases[f"{clip}.wav"]["expressive"]
        if "ok" in case:
            assert " ".join(map(str, units)) == case["ok"]["units"]["pitch"], clip
        else:
            assert case["raises"] == "IndexError"
            assert len(units) == (len(audio(clip)) // 80 + 1) // 16
            assert len(set(units[4:-4].tolist())) == 1


def test_a_given_mean_replaces_the_clips_own(tiny):
    clip = audio("tone_a")
    (contour,) = tiny.contours([clip])
    own = contour[0][contour[1] > 0].mean()
    np.testing.assert_array_equal(tiny.quantize(*contour), tiny.encode(clip, f0_mean=own))
    assert (tiny.encode(clip, f0_mean=own + 40) != tiny.encode(clip, f0_mean=own)).any()
    odd = golden_json("vqvae_odd.json")["speaker stats given, f0=100, mean=140"]["ok"]
    assert tiny.quantize(np.full(64, 100.0), np.ones(64), 140.0).tolist() == odd


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")  # AMFM-decompy's own, on silence
@pytest.mark.parametrize("clip", CLIPS)
def test_pyaapt_equals_the_reference(clip):
    pytest.importorskip("amfm_decompy")
    arrays = golden_arrays("pyaapt.npz")
    # The golden resampling where there is one: the last bit of a sample can move a lag.
    resampled = golden_arrays("resample.npz").get(f"{clip}.wav/16k")
    f0, voiced = pyaapt(audio(clip) if resampled is None else resampled)
    # Both compute in float64, so only the last digits differ between builds.
    np.testing.assert_allclose(f0, arrays[f"{clip}.wav/f0"], rtol=1e-6)
    np.testing.assert_array_equal(voiced, arrays[f"{clip}.wav/vuv"])


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
def test_pyaapt_gives_units_for_speech_and_silence(tiny):
    """pYAAPT gives one F0 frame fewer than FCPE. Silence has no F0, but it has units."""
    pytest.importorskip("amfm_decompy")
    config = {name: value for name, value in tiny.config().items() if name != "fcpe"}
    encoder = VQVAEPitch.load(config, {"vqvae": tiny.arrays()["vqvae"]}, f0="pyaapt")
    clips = [audio("tone_a"), audio("silence")]
    for clip, units in zip(clips, encoder.encode_batch(clips), strict=True):
        assert len(units) == len(clip) // 80 // 16
    with pytest.raises(AudioError, match="pitch units need 1280 samples"):
        encoder.encode(clips[0][:1279])


def test_unusable_arguments_are_refused(tiny, monkeypatch):
    with pytest.raises(ValueError, match="f0 must be one of"):
        VQVAEPitch.load(tiny.config(), tiny.arrays(), f0="crepe")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no FCPE weights"):
        VQVAEPitch.load({"vqvae": {}}, {})
    with pytest.raises(AudioError, match="pitch units need 1200 to 1600000 samples"):
        tiny.encode(np.zeros(1199, np.float32))
    monkeypatch.setitem(sys.modules, "amfm_decompy", None)
    with pytest.raises(ImportError, match="spirit_jax\\[pyaapt\\]"):
        pyaapt(np.zeros(1600, np.float32))
