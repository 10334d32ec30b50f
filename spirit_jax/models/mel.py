"""Log-mel spectra as networks read them and losses compare them: magnitudes, Slaney's filterbank, natural logarithms.

The numerics are those of librosa's filterbank and of the spectra of HiFi-GAN (Kong et al. 2020, arXiv 2010.05646) and
FCPE. The functions are differentiable in the audio.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.models.hifigan_config import MelConfig

MAGNITUDE_EPSILON, LOG_FLOOR = 1e-9, 1e-5
"""Added to the squared magnitude before its root, and the smallest mel magnitude before the logarithm."""


@functools.cache
def mel_filters(bands: int, fft_size: int) -> Float[np.ndarray, "bands bins"]:
    """Slaney's mel filterbank from 0 to 8 kHz, float32; each triangle has unit area."""

    def to_mel(hz):
        return np.where(hz < 1000.0, hz * 3 / 200, 15.0 + 27 * np.log(np.maximum(hz, 1000.0) / 1000.0) / np.log(6.4))

    def to_hz(mel):
        return np.where(mel < 15.0, mel * 200 / 3, 1000.0 * np.exp(np.log(6.4) * (mel - 15.0) / 27))

    bins = np.linspace(0.0, SAMPLE_RATE / 2, fft_size // 2 + 1)
    edges = to_hz(np.linspace(0.0, to_mel(SAMPLE_RATE / 2), bands + 2))
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    area = 2.0 / (edges[2:] - edges[:-2])
    return (np.maximum(0.0, np.minimum(rising, falling)) * area[:, None]).astype(np.float32)


def log_magnitudes(
    frames_btw: Float[Array, "B T W"], filters_mf: Float[np.ndarray, "M F"] | Float[Array, "M F"]
) -> Float[Array, "B T M"]:
    """Log-mel magnitudes of frames of audio under a periodic Hann window."""
    width = frames_btw.shape[-1]
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(width) / width)).astype(np.float32)
    spectrum = jnp.fft.rfft(frames_btw * window, axis=-1)
    magnitude = jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + MAGNITUDE_EPSILON)
    return jnp.log(jnp.maximum(jnp.einsum("btf,mf->btm", magnitude, filters_mf), LOG_FLOOR))


def vocoder_mel(
    audio_br: Float[Array, "B R"], config: MelConfig, lengths_b: Int[Array, " B"] | None = None
) -> tuple[Float[Array, "B T M"], Int[Array, " B"]]:
    """Log-mel spectrum of clips, and how many frames each has: length // hop.

    Frames are not centered: a clip is reflected by (window - hop) / 2 samples at both ends, so that frame t begins
    hop * t samples after the start of the padded clip. Frames past those of a clip are undefined.

    Args:
        audio_br: clips in [-1, 1].
        config: bands and frames.
        lengths_b: samples of each clip; None for all of R. A clip must be longer than the reflected samples.
    """
    pad, samples = (config.window - config.hop) // 2, audio_br.shape[1]
    if samples <= pad:
        raise ValueError(f"a clip of {samples} samples is too short for a mel spectrum: more than {pad} are needed")
    if lengths_b is None:
        padded = jnp.pad(audio_br, ((0, 0), (pad, pad)), mode="reflect")
        frames_b = jnp.full(audio_br.shape[:1], samples // config.hop, jnp.int32)
    else:
        lengths = lengths_b[:, None]
        source = jnp.abs(jnp.arange(samples + 2 * pad)[None] - pad)
        source = jnp.clip(jnp.where(source < lengths, source, 2 * (lengths - 1) - source), 0, samples - 1)
        padded, frames_b = jnp.take_along_axis(audio_br, source, axis=1), lengths_b // config.hop
    count, blocks = samples // config.hop, config.window // config.hop
    cells = padded[:, : (count + blocks - 1) * config.hop].reshape(padded.shape[0], -1, config.hop)
    frames = jnp.concatenate([cells[:, i : i + count] for i in range(blocks)], axis=-1)
    return log_magnitudes(frames, mel_filters(config.bands, config.window)), frames_b
