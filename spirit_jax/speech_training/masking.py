"""Which frames are masked: spans from random starts, drawn as fairseq's HuBERT draws them. NumPy alone."""

import numpy as np
from jaxtyping import Bool

from spirit_jax.speech_training.hubert_config import MaskConfig


def draw_mask(frames: int, config: MaskConfig, rng: np.random.Generator) -> Bool[np.ndarray, " frames"]:
    """Draw the masked frames of a clip.

    The number of spans is `probability * frames / length`, rounded up or down at random so that its mean is exact, and
    at least `least_spans`. The starts are different frames, drawn from those that leave room for a span; spans overlap.
    fairseq then unmasks frames of some rows, so that all rows of a batch have equally many; nothing here needs that.

    Args:
        frames: frames of the clip, at least 2.
        config: length and number of spans.
        rng: the source of chance.
    """
    mask = np.zeros(frames, bool)
    spans = max(config.least_spans, int(config.probability * frames / config.length + rng.random()))
    length = min(config.length, frames - 1)
    places = frames - length if frames - length > spans else spans + 1
    starts = rng.choice(min(places, frames), min(spans, frames), replace=False)
    for start in starts:
        mask[start : start + config.length] = True
    return mask
