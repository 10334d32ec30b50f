"""Audio files and sample rates: Spirit LM hears and speaks 16 kHz mono."""

import functools
import io
import logging
import math
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.containers import is_cut_short, with_wav_size
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import read_bytes, write_file
from spirit_jax.core.paths import disk_path, local_path

RATES = (4_000, 768_000)
"""Lowest and highest sample rate that is believed; another one in a header is a damaged or hostile file."""

SUFFIXES_OF_AV = (".m4a", ".aac", ".mp4", ".webm", ".wma", ".amr")
"""Suffixes, in lower case, of audio files that are read with the package `av`."""
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".caf", ".w64"),
    *SUFFIXES_OF_AV,
)
"""Suffixes, in lower case, of audio files."""

KERNEL_LIMIT = 1 << 20
"""Elements of the polyphase kernel up to which it is built; the kernel of rates without a common factor is larger."""
LEAST_SECONDS, FRAMES_A_BYTE = 600, 300
"""A file may decode to as many seconds, and to as many samples for each of its bytes; more is a hostile file."""
_NO_OTHER_FILES = {"protocol_whitelist": "none"}  # a playlist or SDP would make FFmpeg open files and sockets
_ZERO_CROSSINGS, _ROLLOFF = 6, 0.99
_BLOCK_SAMPLES = 1 << 20
_PEAK = 4.0


class AudioError(SpiritError):
    """Audio that cannot be read or used; the message names the file and the reason."""


class AudioLimits(NamedTuple):
    """The most that is decoded of audio from strangers. A file of any size can decode to far more."""

    seconds: float = math.inf
    channels: int = 1024


_NO_LIMITS = AudioLimits()


def load_audio(
    source: str | os.PathLike | bytes,
    sample_rate: int = SAMPLE_RATE,
    *,
    resampler: str = "sinc",
    limits: AudioLimits = _NO_LIMITS,
) -> Float[np.ndarray, " R"]:
    """Read a WAV, FLAC, OGG, MP3 or AIFF file as mono; with the package `av` also M4A, AAC and what else FFmpeg reads.

    Channels are averaged, and audio at another rate is resampled. 16-bit samples are divided by 32768
    (docs/formats.md, "Audio"). Memory is in proportion to the size of the file, whatever its header says. Samples far
    outside [-1, 1], and two channels that cancel each other, are logged as warnings.

    Example::

        audio = load_audio("speech.flac")  # 16 kHz

    Args:
        source: a path, whose `~` is expanded, or the content of a file.
        sample_rate: samples per second of the result.
        resampler: "sinc", the reference's kernel, which gives the units of the released code; or "soxr", which keeps
            more of the band above 6 kHz.
        limits: longer audio, and more channels, are refused before they take memory.

    Returns:
        float32 [R] in [-1, 1].

    Raises:
        AudioError: the file is missing, not a regular file, unreadable, empty or cut short, its rate is implausible, or
            it holds samples that are not finite, or it is beyond the limits; names it.
        PathError: the file is in a bucket.
        ValueError: an unknown resampler.
    """
    resample = {"sinc": resample_sinc, "soxr": soxr.resample}
    if resampler not in resample:
        raise ValueError(f"resampler must be one of {sorted(resample)}, found {resampler!r}")
    if isinstance(source, bytes):
        name, content = f"{len(source)} bytes of audio", source
    else:
        if not os.path.lexists(source):
            source = local_path(os.fspath(source), "audio")
        name = str(source)
        if not os.path.lexists(source):
            raise AudioError(f"{name}: no such file")
        if os.path.isdir(source):
            raise AudioError(f"{name}: is a directory, not a sound file")
        content = read_bytes(source, AudioError)
    audio, rate = _decode(with_wav_size(content), name, limits)
    if is_cut_short(content):
        raise AudioError(f"{name}: is cut short: it ends before the length that its header gives")
    if not audio.size:
        raise AudioError(f"{name}: holds no samples")
    if not np.isfinite(audio).all():
        raise AudioError(f"{name}: holds samples that are not finite")
    if rate == sample_rate:
        return audio
    return resample[resampler](audio, rate, sample_rate).astype(np.float32, copy=False)


class _Content(io.BytesIO):
    """The content of a file, for a decoder that asks for places before its start when a header is damaged."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _decode(content: bytes, name: str, limits: AudioLimits) -> tuple[Float[np.ndarray, " R"], int]:
    """The mean of the channels, float32 [R], and the sample rate."""
    try:
        file = soundfile.SoundFile(_Content(content))
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        decoded = _decode_with_av(content, name, limits)
        if decoded is not None:
            return decoded
        raise _undecodable(name, error) from error
    with file:
        try:
            audio = _mix(_blocks(file), file.samplerate, len(content), name, limits)
        except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
            raise _undecodable(name, error) from error
        if file.format == "FLAC" and audio.size < file.frames:
            raise AudioError(f"{name}: its header gives {file.frames} samples, it holds {audio.size}")
        return audio, file.samplerate


def _blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """The samples of an open file in blocks, float32 [R, C], whatever length its header gives."""
    count = max(_BLOCK_SAMPLES // file.channels, 1)
    while len(block := file.read(count, "float32", always_2d=True)):
        yield block


def _undecodable(name: str, error: Exception) -> AudioError:
    reason = str(getattr(error, "error_string", error)).strip()
    needs_av = pathlib.PurePath(name).suffix.lower() in SUFFIXES_OF_AV and not _has_av()
    hint = "; pip install 'spirit_jax[m4a]' to read files of this kind" if needs_av else ""
    return AudioError(f"{name}: cannot be decoded ({reason}){hint}")


def _has_av() -> bool:
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def _decode_with_av(content: bytes, name: str, limits: AudioLimits) -> tuple[Float[np.ndarray, " R"], int] | None:
    """As `_decode`, with FFmpeg; None if the package `av` is not installed or FFmpeg does not know the format."""
    try:
        import av
    except ImportError:
        return None
    try:
        with av.open(io.BytesIO(content), mode="r", metadata_errors="ignore", options=_NO_OTHER_FILES) as container:
            if not container.streams.audio:
                return None
            rate = container.streams.audio[0].rate
            planar = av.AudioResampler(format="fltp", rate=rate)
            frames = (part for frame in container.decode(audio=0) for part in planar.resample(frame))
            return _mix((frame.to_ndarray().T for frame in frames), rate, len(content), name, limits), rate
    except AudioError:
        raise
    except Exception:  # FFmpeg's own errors, and AttributeError and others where a header is damaged
        return None


def _mix(blocks: Iterator[np.ndarray], rate: int, size: int, name: str, limits: AudioLimits) -> Float[np.ndarray, " R"]:
    """The mean of the channels of decoded blocks [R, C]; warns of scales and channels that are probably wrong.

    Raises:
        AudioError: the rate is implausible, there are far more samples than a file of `size` bytes can hold, or the
            audio is beyond the limits.
    """
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"{name}: a sample rate of {rate} Hz is not plausible; {RATES[0]} to {RATES[1]} Hz are read")
    most = LEAST_SECONDS * rate + FRAMES_A_BYTE * size
    mono, count, peak, energy, mixed = [], 0, 0.0, 0.0, 0.0
    channels = 1
    for block in blocks:
        channels = block.shape[1]
        count += len(block)
        if channels > limits.channels:
            raise AudioError(f"{name}: has {channels} channels; at most {limits.channels} are read")
        if count > limits.seconds * rate:
            raise AudioError(f"{name}: is longer than {limits.seconds:g} s")
        mono.append(block.mean(axis=1))
        if count > most:
            raise AudioError(f"{name}: decodes to more than {most} samples from {size} bytes")
        if block.size:
            peak = max(peak, float(np.abs(block).max()))
            energy += float(np.square(block, dtype=np.float64).mean(axis=1).sum())
            mixed += float(np.square(mono[-1], dtype=np.float64).sum())
    if _PEAK < peak < math.inf:
        logging.warning("%s: samples reach %.0f, audio is expected in [-1, 1]; divide them by 32768?", name, peak)
    if channels == 2 and mixed < 1e-3 * energy and energy > 1e-8 * count:
        logging.warning("%s: its two channels cancel each other when they are averaged; keep one of them", name)
    return np.concatenate(mono) if mono else np.zeros(0, np.float32)


def save_audio(path: str | os.PathLike, audio: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Write mono audio as a 16-bit WAV, FLAC or OGG file, chosen by the suffix. The write is atomic.

    Args:
        path: of the file, whose `~` is expanded; an existing one is replaced.
        audio: float [R]; values outside [-1, 1] are clipped.
        sample_rate: samples per second.

    Raises:
        AudioError: the audio is not 1-D, or the suffix names no format that can be written.
        PathError: the file would be in a bucket.
    """
    path = pathlib.Path(disk_path(os.fspath(path), "audio"))
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1:
        raise AudioError(f"{path}: audio to write must be 1-D, found shape {audio.shape}")
    suffix = path.suffix.lower().removeprefix(".").upper()
    if suffix not in soundfile.available_formats():
        raise AudioError(f"{path}: unknown audio suffix; use .wav, .flac or .ogg")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(audio, -1.0, 1.0), sample_rate, format=suffix)
    write_file(path, buffer.getvalue())


def encode_wav(audio: Float[np.ndarray, " R"], sample_rate: int = SAMPLE_RATE) -> bytes:
    """The content of a 16-bit WAV file with mono audio; values outside [-1, 1] are clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(audio, -1.0, 1.0), sample_rate, format="WAV")
    return buffer.getvalue()


def resample_sinc(audio: Float[np.ndarray, " R"], original: int, target: int) -> Float[np.ndarray, " R2"]:
    """Resample with a windowed sinc, as the reference does (torchaudio's default; docs/formats.md, "Audio").

    The kernel has a Hann window, 6 zero crossings and roll-off 0.99. It is applied as polyphase filters over the
    reduced ratio of the rates; for rates without a large common factor, whose filters would not fit into memory, each
    sample is computed by the same formula.

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
    length = math.ceil(target * audio.size / original)
    if target * (original + 2 * _kernel_width(original, target)) > KERNEL_LIMIT:
        return resample_each_sample(audio, original, target, length)
    kernel, width = _sinc_kernel(original, target)
    padded = np.pad(audio, (width, width + original))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[1])[::original]
    return (windows @ kernel.T).reshape(-1)[:length]


def _kernel_width(original: int, target: int) -> int:
    """Samples of the input on each side that an output depends on."""
    return math.ceil(_ZERO_CROSSINGS * original / (min(original, target) * _ROLLOFF))


@functools.lru_cache(maxsize=8)
def _sinc_kernel(original: int, target: int) -> tuple[np.ndarray, int]:
    """The polyphase filters, float32 [target, taps], and the padding on the left."""
    base = min(original, target) * _ROLLOFF
    width = _kernel_width(original, target)
    taps = np.arange(-width, width + original, dtype=np.float32)[None] / np.float32(original)
    phases = (np.arange(0, -target, -1, dtype=np.float32) / np.float32(target))[:, None]
    return _windowed_sinc((phases + taps) * np.float32(base)) * np.float32(base / original), width


def _windowed_sinc(time: np.ndarray) -> np.ndarray:
    """The sinc under a Hann window, float32; zero from the sixth zero crossing on."""
    time = np.clip(time, -_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    window = np.cos(time * np.float32(math.pi / _ZERO_CROSSINGS / 2)) ** 2
    angle = time * np.float32(math.pi)
    with np.errstate(invalid="ignore", divide="ignore"):
        sinc = np.where(angle == 0, np.float32(1), np.sin(angle) / angle)
    return (sinc * window).astype(np.float32)


def resample_each_sample(
    audio: Float[np.ndarray, " R"], original: int, target: int, length: int
) -> Float[np.ndarray, " R2"]:
    """Resample with the formula of `resample_sinc` at the time of each output, in blocks of bounded memory."""
    width, base = _kernel_width(original, target) + 1, min(original, target) * _ROLLOFF
    offsets = np.arange(-width, width + 1)
    padded = np.pad(audio, (width, 2 * width + 1))
    result = np.empty(length, np.float32)
    step = max(_BLOCK_SAMPLES // len(offsets), 1)
    for start in range(0, length, step):
        position = np.arange(start, min(start + step, length), dtype=np.int64) * original
        nearest = position // target
        distance = offsets * target - (position - nearest * target)[:, None]  # in 1 / (original * target) seconds
        kernel = _windowed_sinc((distance * (base / original / target)).astype(np.float32))
        samples = padded[nearest[:, None] + (offsets + width)]
        result[start : start + step] = np.einsum("nk,nk->n", samples, kernel) * np.float32(base / original)
    return result
