"""Cepstra without the level of voice and recording, whose clusters label the first iteration of a short run."""

import numpy as np
import scipy.fft
from jaxtyping import Float

from spirit_jax.speech.features import MEL_FRAMES_PER_UNIT, MEL_HOP, RECEPTIVE_FIELD, log_mel
from spirit_jax.speech.scratch.kmeans import normalize

_CEPSTRA = 13


def cepstra(audio: Float[np.ndarray, " R"]) -> Float[np.ndarray, "frames 52"]:
    """The envelope of the 45 ms that begin at each multiple of 10 ms: [(R - 720) // 160 + 1, 4 * 13], float32.

    Four log-mel spectra, 10 ms apart, without the level of the voice, each as 13 cepstra. A cepstrum is weighted by the
    square root of its index, so that the shape of a spectrum counts more than its loudness and its tilt.
    """
    frames = (audio.size - RECEPTIVE_FIELD) // MEL_HOP + 1
    spectra = normalize(log_mel(audio, frames + MEL_FRAMES_PER_UNIT - 1))
    lifter = np.sqrt(np.maximum(np.arange(_CEPSTRA), 1))
    found = np.asarray(scipy.fft.dct(spectra, norm="ortho", axis=1))[:, :_CEPSTRA] * lifter
    windows = np.lib.stride_tricks.sliding_window_view(found, MEL_FRAMES_PER_UNIT, axis=0)
    return windows.swapaxes(1, 2).reshape(frames, -1).astype(np.float32)
