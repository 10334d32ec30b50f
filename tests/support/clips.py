"""A short clip of a tone with two words."""

import io

import numpy as np
import soundfile

from spirit_jax.corpora import Utterance

RATE = 16_000


def flac(samples: int) -> bytes:
    """A FLAC file of a tone at 16 kHz."""
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.sin(np.arange(samples) * 0.05), RATE, format="FLAC")
    return file.getvalue()


def clip() -> Utterance:
    """An utterance of one second with two aligned words."""
    spans_ms = np.array([[100, 400], [450, 900]], np.int32)
    return Utterance("clip", flac(RATE), "two words", ("two", "words"), spans_ms, "me")
