"""Reading, writing and resampling of audio, against the reference's resampler (golden) and soundfile."""

import numpy as np
import pytest
import soundfile

from spirit_jax.audio import AudioError, load_audio, resample_sinc, save_audio
from tests.support.goldens import golden, golden_arrays


def test_load_audio_resamples_like_the_reference():
    expected = golden_arrays("resample.npz")["espeak_a_22k.wav/16k"]
    audio = load_audio(golden("audio/espeak_a_22k.wav"))
    assert audio.shape == expected.shape
    assert audio.dtype == np.float32
    np.testing.assert_allclose(audio, expected, rtol=0, atol=9.1e-5)  # the tolerance that the golden files suggest


@pytest.mark.parametrize(
    ("original", "target"), [(8_000, 16_000), (44_100, 16_000), (48_000, 16_000), (16_000, 22_050)]
)
def test_resampling_keeps_a_tone(original, target):
    time = np.arange(original) / original
    resampled = resample_sinc(np.sin(2 * np.pi * 440 * time), original, target)
    assert resampled.size == target
    inside = slice(target // 10, -target // 10)  # away from the edges, where the kernel reaches padding
    expected = np.sin(2 * np.pi * 440 * np.arange(target) / target)
    np.testing.assert_allclose(resampled[inside], expected[inside], atol=2e-3)  # pass-band ripple of 6 zero crossings


def test_stereo_is_averaged_and_bytes_are_read(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, (1000, 2)), 16_000)
    stereo, _ = soundfile.read(path, dtype="float32")
    audio = load_audio(path.read_bytes())
    np.testing.assert_allclose(audio, stereo.mean(axis=1), atol=1e-7)


def test_saved_audio_reads_back(tmp_path):
    audio = np.linspace(-1.2, 1.2, 1000, dtype=np.float32)
    for suffix in ("wav", "flac"):
        save_audio(tmp_path / f"a.{suffix}", audio)
        np.testing.assert_allclose(load_audio(tmp_path / f"a.{suffix}"), np.clip(audio, -1, 1), atol=1 / 32768)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.flac", "a.wav"]


def test_unusable_audio_is_named_with_the_reason(tmp_path):
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "folder.wav").mkdir()
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 16_000, subtype="FLOAT")
    for name, message in [
        ("text.wav", "cannot be decoded"),
        ("empty.wav", "no samples"),
        ("nan.wav", "not finite"),
        ("none.wav", "no such file"),
        ("folder.wav", "is a directory, not a sound file"),
    ]:
        with pytest.raises(AudioError, match=f"{name}.*{message}"):
            load_audio(tmp_path / name)
    with pytest.raises(AudioError, match="unknown audio suffix"):
        save_audio(tmp_path / "a.xyz", np.zeros(10))
