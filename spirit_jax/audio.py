"""Audio files and sample rates: Spirit LM hears and speaks 16 kHz mono."""

import functools
import io
import math
import os
import pathlib

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import write_file


class AudioError(SpiritError):
    """Audio that cannot be read or used; the message names the file and the reason."""


def load_audio(
    source: str | os.PathLike | bytes, sample_rate: int = SAMPLE_RATE, *, resampler: str = "sinc"
) -> Float[np.ndarray, " R"]:
    """Read a WAV, FLAC, OGG or MP3 file as mono.

    Channels are averaged, and audio at another rate is resampled. 16-bit samples are divided by 32768
    (docs/formats.md, "Audio").

    Example::

        audio = load_audio("speech.flac")  # 16 kHz

    Args:
        source: a path, or the content of a file.
        sample_rate: samples per second of the result.
        resampler: "sinc", the reference's kernel, which gives the units of the released code; or "soxr", which keeps
            more of the band above 6 kHz.

    Returns:
        float32 [R] in [-1, 1].

    Raises:
        AudioError: the file is missing, unreadable or empty, or holds samples that are not finite; names it.
        ValueError: an unknown resampler.
    """
    name = f"{len(source)} bytes of audio" if isinstance(source, bytes) else str(source)
    try:
        samples, rate = soundfile.read(
            io.BytesIO(source) if isinstance(source, bytes) else str(source), dtype="float32", always_2d=True
        )
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        reason = f"cannot be decoded ({getattr(error, 'error_string', error)})"
        if not isinstance(source, bytes) and not pathlib.Path(source).exists():
            reason = "no such file"
        elif not isinstance(source, bytes) and pathlib.Path(source).is_dir():
            reason = "is a directory, not a sound file"
        raise AudioError(f"{name}: {reason}") from error
    audio = samples.mean(axis=1)
    if not audio.size:
        raise AudioError(f"{name}: holds no samples")
    if not np.isfinite(audio).all():
        raise AudioError(f"{name}: holds samples that are not finite")
    if rate == sample_rate:
        return audio
    resample = {"sinc": resample_sinc, "soxr": soxr.resample}
    if resampler not in resample:
        raise ValueError(f"resampler must be one of {sorted(resample)}, found {resampler!r}")
    return resample[resampler](audio, rate, sample_rate).astype(np.float32, copy=False)


def save_audio(path: str | os.PathLike, audio: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Write mono audio as a 16-bit WAV, FLAC or OGG file, chosen by the suffix. The write is atomic.

    Args:
        path: of the file; an existing one is replaced.
        audio: float [R]; values outside [-1, 1] are clipped.
        sample_rate: samples per second.

    Raises:
        AudioError: the audio is not 1-D, or the suffix names no format that can be written.
    """
    path = pathlib.Path(path)
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1:
        raise AudioError(f"{path}: audio to write must be 1-D, found shape {audio.shape}")
    suffix = path.suffix.lower().removeprefix(".").upper()
    if suffix not in soundfile.available_formats():
        raise AudioError(f"{path}: unknown audio suffix; use .wav, .flac or .ogg")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(audio, -1.0, 1.0), sample_rate, format=suffix)
    write_file(path, buffer.getvalue())


def resample_sinc(audio: Float[np.ndarray, " R"], original: int, target: int) -> Float[np.ndarray, " R2"]:
    """Resample with a windowed sinc, as the reference does (torchaudio's default; docs/formats.md, "Audio").

    The kernel has a Hann window, 6 zero crossings and roll-off 0.99, and is applied as polyphase filters over the
    reduced ratio of the rates.

    Args:
        audio: float [R] at the original rate.
        original: samples per second of the audio.
        target: samples per second of the result.

    Returns:
        float32 [ceil(target * R / original)].
    """
    divisor = math.gcd(original, target)
    original, target = original // divisor, target // divisor
    audio = np.asarray(audio, np.float32)
    if original == target:
        return audio
    kernel, width = _sinc_kernel(original, target)
    length = math.ceil(target * audio.size / original)
    padded = np.pad(audio, (width, width + original))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[1])[::original]
    return (windows @ kernel.T).reshape(-1)[:length]


@functools.lru_cache(maxsize=8)
def _sinc_kernel(original: int, target: int) -> tuple[np.ndarray, int]:
    """The polyphase filters, float32 [target, taps], and the padding on the left."""
    zero_crossings, rolloff = 6, 0.99
    base = min(original, target) * rolloff
    width = math.ceil(zero_crossings * original / base)
    taps = np.arange(-width, width + original, dtype=np.float32)[None] / np.float32(original)
    phases = (np.arange(0, -target, -1, dtype=np.float32) / np.float32(target))[:, None]
    time = np.clip((phases + taps) * np.float32(base), -zero_crossings, zero_crossings)
    window = np.cos(time * np.float32(math.pi / zero_crossings / 2)) ** 2
    angle = time * np.float32(math.pi)
    with np.errstate(invalid="ignore", divide="ignore"):
        sinc = np.where(angle == 0, np.float32(1), np.sin(angle) / angle)
    return (sinc * window * np.float32(base / original)).astype(np.float32), width
