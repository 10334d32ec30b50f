"""Reading, writing and resampling of audio, against the reference's resampler (golden) and soundfile."""

import io
import logging
import random
import struct
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile

from spirit_jax import audio as audio_module
from spirit_jax.audio import AudioError, load_audio, resample_sinc, save_audio
from spirit_jax.core.containers import is_cut_short
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


def encoded(samples=8000, rate=16_000, **options):
    """A file of a tone."""
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.sin(np.arange(samples) * 0.05), rate, **options)
    return file.getvalue()


FORMATS = {
    "wav": {"format": "WAV"},
    "aiff": {"format": "AIFF"},
    "au": {"format": "AU"},
    "flac": {"format": "FLAC"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_cut_short_is_refused(name):
    content = encoded(30_000, **FORMATS[name])
    assert load_audio(content).size == pytest.approx(30_000, abs=1200)
    for share in (0.95, 0.7, 0.5):
        with pytest.raises(AudioError, match="cut short|cannot be decoded|it holds"):
            load_audio(content[: int(len(content) * share)])


def test_mp3_without_a_xing_header_ends_with_a_whole_frame():
    content = encoded(30_000, **FORMATS["mp3"])
    first = 4 + content[4:].index(b"\xff\xf3")
    assert not is_cut_short(content[first:])
    assert not is_cut_short(content[first:] + b"TAG" + b" " * 125)
    assert is_cut_short(content[first:-3])


@pytest.mark.parametrize("sizes", [(0, 0), (0xFFFFFFFF, 0xFFFFFFFF), (36, 0), (0xFFFFFFFF, 0)])
def test_a_wav_that_was_streamed_is_read_to_its_end(sizes):
    content = bytearray(encoded(8000, format="WAV"))
    at = content.index(b"data")
    content[4:8], content[at + 4 : at + 8] = (struct.pack("<I", size) for size in sizes)
    assert load_audio(bytes(content)).size == 8000


@pytest.mark.parametrize("rate", [16_001, 44_101, 8_001, 11_127, 767_999, 4_001])
def test_rates_without_a_common_factor_take_little_memory(rate):
    seconds = 0.5
    time = np.arange(int(rate * seconds)) / rate
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    tracemalloc.start()
    resampled = resample_sinc(tone, rate, 16_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    expected = np.sin(2 * np.pi * 440 * np.arange(resampled.size) / 16_000)
    assert resampled.size == pytest.approx(16_000 * seconds, abs=1)
    np.testing.assert_allclose(resampled[800:-800], expected[800:-800], atol=2e-3)


@pytest.mark.parametrize(("original", "target"), [(441, 160), (1, 2), (441, 320), (3, 1)])
def test_each_sample_by_itself_equals_the_polyphase_filters(original, target):
    noise = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    expected = resample_sinc(noise, original, target)
    found = audio_module.resample_each_sample(noise, original, target, expected.size)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("rate", [1, 3_999, 768_001, 2_000_000_000])
def test_implausible_rates_are_refused_by_name(rate, tmp_path):
    content = bytearray(encoded(8000, format="WAV"))
    content[24:28] = struct.pack("<I", rate)
    (tmp_path / "odd.wav").write_bytes(content)
    with pytest.raises(AudioError, match=rf"odd.wav: a sample rate of {rate} Hz is not plausible; 4000 to 768000 Hz"):
        load_audio(tmp_path / "odd.wav")


@pytest.mark.parametrize("claimed", [1 << 35, 9_000])
def test_a_flac_that_claims_more_samples_than_it_holds_is_refused(claimed):
    content = bytearray(encoded(8000, format="FLAC"))
    bits = int.from_bytes(content[18:26], "big")  # rate, channels, depth, and 36 bits of samples
    content[18:26] = (bits >> 36 << 36 | claimed).to_bytes(8, "big")
    tracemalloc.start()
    with pytest.raises(AudioError, match="its header gives|cannot be decoded"):
        load_audio(bytes(content))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_a_file_that_decodes_to_very_many_samples_is_refused(monkeypatch):
    monkeypatch.setattr(audio_module, "LEAST_SECONDS", 1)
    monkeypatch.setattr(audio_module, "FRAMES_A_BYTE", 2)
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(200_000), 16_000, format="FLAC")
    with pytest.raises(AudioError, match="decodes to more than"):
        load_audio(silence.getvalue())


def test_probable_mistakes_of_scale_and_phase_are_logged(tmp_path, caplog):
    tone = np.sin(np.arange(8000) * 0.05)
    for name, samples, message in [
        ("scaled.wav", tone * 9000, "scaled.wav: samples reach 9000, audio is expected in"),
        ("inverted.wav", np.stack([tone, -tone], 1) / 2, "inverted.wav: its two channels cancel"),
        ("good.wav", np.stack([tone, np.roll(tone, 9)], 1), None),
    ]:
        soundfile.write(tmp_path / name, samples, 16_000, subtype="FLOAT")
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            load_audio(tmp_path / name)
        assert (message in caplog.text) if message else not caplog.text


def test_the_file_beside_it_that_macos_makes_is_not_opened(tmp_path):
    (tmp_path / "x.mp3").write_bytes(encoded(8000, format="MP3"))
    (tmp_path / "._x.mp3").write_bytes(b"\0\x05\x16\x07" + b"\0" * 200)
    assert load_audio(tmp_path / "x.mp3").size == pytest.approx(8000, abs=1200)


@pytest.mark.parametrize(("form", "codec"), [("ipod", "aac"), ("adts", "aac")])
def test_other_formats_are_read_with_av(form, codec, monkeypatch, tmp_path):
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.sin(np.arange(16_000) * 0.05).astype(np.float32)[None] / 2, format="fltp", layout="mono"
        )
        frame.sample_rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    audio = load_audio(file.getvalue())
    assert audio.size == pytest.approx(16_000, abs=2100)
    assert np.sqrt(np.mean(audio[4000:12_000] ** 2)) == pytest.approx(0.5 / 2**0.5, rel=0.05)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match="cannot be decoded"):
        load_audio(file.getvalue())


def test_a_playlist_does_not_open_the_files_that_it_names(tmp_path, monkeypatch):
    pytest.importorskip("av")
    (tmp_path / "other.wav").write_bytes(encoded(8000, format="WAV"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AudioError, match="cannot be decoded"):
        load_audio(b"ffconcat version 1.0\nfile other.wav\n")


def test_mutated_files_give_audio_or_an_audio_error():
    """Thousands of damaged files of each format end within seconds, without another exception."""
    rng, refused = random.Random(0), 0
    files = [encoded(1500, **options) for options in FORMATS.values()]
    for number in range(1400):
        content = bytearray(files[number % len(files)])
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(min(len(content), 300))] = rng.choice([0, 255, 127, 128, rng.randrange(256)])
        try:
            audio = load_audio(bytes(content[: rng.choice([None, 40, 400])]))
            assert audio.size <= 600 * 16_000 * 4
        except AudioError:
            refused += 1
    assert refused > 400
