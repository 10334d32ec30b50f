"""The losses of a unit HiFi-GAN: Kong et al. 2020 (arXiv 2010.05646, section 2.4) and the duration predictor's.

Every loss is a mean over a batch. Padding does not count, nor do rows of weight 0, which fill up a batch; to the mel
and the duration loss, these are rows of length 0.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spirit_jax.kernels.masked import valid_frames

Outputs = Sequence[Sequence[Float[Array, "_B _N _C"]]]
"""The layers' outputs of each discriminator, the scores last (`hifigan_discriminators.Discriminators`)."""


def discriminator_loss(
    real: Outputs, generated: Outputs, weight_b: Float[Array, " B"] | None = None
) -> Float[Array, ""]:
    """Least squares: scores of recordings should be 1, those of generated audio 0; a sum over the discriminators."""
    return sum(
        (
            _mean(jnp.square(1.0 - recorded[-1]), weight_b) + _mean(jnp.square(made[-1]), weight_b)
            for recorded, made in zip(real, generated, strict=True)
        ),
        start=jnp.zeros(()),
    )


def adversarial_loss(generated: Outputs, weight_b: Float[Array, " B"] | None = None) -> Float[Array, ""]:
    """Least squares: the generator wants the scores of its audio to be 1; a sum over the discriminators."""
    return sum((_mean(jnp.square(1.0 - outputs[-1]), weight_b) for outputs in generated), start=jnp.zeros(()))


def feature_matching_loss(
    real: Outputs, generated: Outputs, weight_b: Float[Array, " B"] | None = None
) -> Float[Array, ""]:
    """Mean absolute difference of each layer's outputs, the scores among them, summed over layers and discriminators.

    Published recipes count it twice.
    """
    pairs = [pair for networks in zip(real, generated, strict=True) for pair in zip(*networks, strict=True)]
    return sum((_mean(jnp.abs(recorded - made), weight_b) for recorded, made in pairs), start=jnp.zeros(()))


def _mean(x_bnc: Float[Array, "B N C"], weight_b: Float[Array, " _B"] | None) -> Float[Array, ""]:
    """The mean over the rows of weight 1. The rows of a clip's phases follow each other and share its weight."""
    if weight_b is None:
        return jnp.mean(x_bnc)
    mean_b = x_bnc.reshape(weight_b.shape[0], -1).mean(1)
    return jnp.sum(mean_b * weight_b) / jnp.maximum(jnp.sum(weight_b), 1)


def mel_loss(
    real_btm: Float[Array, "B T M"], generated_btm: Float[Array, "B T M"], frames_b: Int[Array, " B"]
) -> Float[Array, ""]:
    """Mean absolute difference of two log-mel spectra over the frames of each clip."""
    inside = valid_frames(frames_b, real_btm.shape[1])[:, :, None]
    difference = jnp.where(inside, jnp.abs(real_btm - generated_btm), 0.0)
    return jnp.sum(difference) / jnp.maximum(jnp.sum(frames_b) * real_btm.shape[2], 1)


def duration_loss(
    log_durations_bu: Float[Array, "B U"], durations_bu: Int[Array, "B U"], counts_b: Int[Array, " B"]
) -> Float[Array, ""]:
    """Mean squared error of log(frames + 1) over the units of each row; 0 for a batch without any.

    Args:
        log_durations_bu: what the predictor gives.
        durations_bu: frames of each unit.
        counts_b: units of each row.
    """
    inside = valid_frames(counts_b, durations_bu.shape[1])
    error = jnp.square(log_durations_bu - jnp.log(durations_bu.astype(jnp.float32) + 1.0))
    return jnp.sum(jnp.where(inside, error, 0.0)) / jnp.maximum(jnp.sum(counts_b), 1)


def inner_runs(
    units: Int[np.ndarray, " T"], size: int
) -> tuple[Int[np.ndarray, " U"], Int[np.ndarray, " U"], np.int32]:
    """The runs of equal units inside a segment: unit and frames of each run, and their number.

    The first and the last run are left out, because a segment cuts them.

    Args:
        units: int32 frames of a segment.
        size: U, the size of the results, which zeros fill; T - 2 is enough.
    """
    starts = np.flatnonzero(np.diff(units, prepend=-1))
    lengths = np.diff(starts, append=len(units))[1:-1]
    found, durations = np.zeros(size, np.int32), np.zeros(size, np.int32)
    count = len(lengths)
    found[:count], durations[:count] = units[starts[1:-1]], lengths
    return found, durations, np.int32(count)
