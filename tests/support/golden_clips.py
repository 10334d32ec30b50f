"""Golden audio clips, and batches of clips for the encoders."""

from collections.abc import Sequence

import numpy as np

from spirit_jax.audio import load_audio
from tests.support.goldens import golden

CLIPS = ("espeak_a_22k", "noise_a", "silence", "tone_a")
"""Clips that most encoder tests share: synthetic speech, noise, silence and a tone."""


def clip(name: str) -> np.ndarray:
    """A golden clip by its file name, `.wav` if it names no other kind: float32 [R] at 16 kHz."""
    return load_audio(golden(f"audio/{name if '.' in name else f'{name}.wav'}"))


def padded(clips: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Audio [B, R] and lengths [B] of a batch whose padding is loud noise, so that any leak from the padding shows."""
    lengths = np.array([len(clip) for clip in clips])
    batch = np.random.default_rng(0).normal(0, 3, (len(clips), lengths.max() + 4321)).astype(np.float32)
    for row, samples in zip(batch, clips, strict=True):
        row[: len(samples)] = samples
    return batch, lengths
